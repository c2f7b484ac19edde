/// Passes text on, except a stop string and what could still become one, wherever it is cut.
struct StopMatcher {
    private let stops: [[Unicode.Scalar]]
    private var held: [Unicode.Scalar] = []

    init(_ stops: [String]) { self.stops = stops.map { Array($0.unicodeScalars) } }

    /// The text that is certain now, and whether a stop string was completed.
    mutating func add(_ text: String) -> (text: String, stopped: Bool) {
        held += text.unicodeScalars
        // The one completed first, so that it does not matter how the text was cut.
        let found = stops.compactMap { stop in
            Self.find(stop, in: held).map { (end: $0 + stop.count, start: $0) }
        }
        if let first = found.min(by: { ($0.end, $0.start) < ($1.end, $1.start) }) {
            defer { held = [] }
            return (Self.string(held[..<first.start]), true)
        }
        let certain = held.count - possibleStart()
        defer { held.removeFirst(certain) }
        return (Self.string(held[..<certain]), false)
    }

    /// What was held back, once no more text comes.
    mutating func flush() -> String {
        defer { held = [] }
        return Self.string(held[...])
    }

    /// The length of the longest end of the text that begins a stop string.
    private func possibleStart() -> Int {
        let longest = min(held.count, (stops.map(\.count).max() ?? 1) - 1)
        return stride(from: longest, to: 0, by: -1).first { length in
            stops.contains { $0.starts(with: held.suffix(length)) }
        } ?? 0
    }

    private static func find(_ needle: [Unicode.Scalar], in text: [Unicode.Scalar]) -> Int? {
        guard needle.count <= text.count else { return nil }
        return (0...(text.count - needle.count)).first { text[$0...].starts(with: needle) }
    }

    private static func string(_ scalars: ArraySlice<Unicode.Scalar>) -> String {
        var view = String.UnicodeScalarView()
        view.append(contentsOf: scalars)
        return String(view)
    }
}
