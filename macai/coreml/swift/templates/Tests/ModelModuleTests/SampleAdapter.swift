import Foundation

@testable import ModelModule

/// An adapter for a slot, and the file it comes in; tests change either.
struct SampleAdapter {
    let slot: AdapterSlot
    /// By name: rank, width and elements, as bits.
    var matrices: [String: (rank: Int, width: Int, bits: [UInt16])] = [:]
    var metadata: [String: String]

    /// All layers, with bits that count up.
    init(_ slot: AdapterSlot, rank: Int, first: UInt16 = 1) {
        self.slot = slot
        metadata = ["format": "macai-adapter", "version": "1", "name": "sample"]
        for (name, value) in slot.base { metadata["base.\(name)"] = value }
        var next = first
        for (layer, place) in slot.places.sorted(by: { $0.key < $1.key }) {
            for (letter, width) in [("A", place.inputs), ("B", place.outputs)] {
                let bits = (0..<rank * width).map { next &+ UInt16($0) }
                matrices["\(layer).\(letter)"] = (rank, width, bits)
                next &+= UInt16(bits.count)
            }
        }
    }

    /// What the state holds, row by row.
    var state: [UInt16] {
        var state = [UInt16](repeating: 0, count: slot.shape[0] * slot.shape[1])
        for (name, matrix) in matrices {
            guard let place = slot.places[String(name.dropLast(2))] else { continue }
            let start = name.hasSuffix("A") ? place.a : place.b
            state.replaceSubrange(start..<start + matrix.bits.count, with: matrix.bits)
        }
        return state
    }

    /// The file; `change` gets the header's entries.
    func contents(_ change: (inout [String: Any]) -> Void = { _ in }) -> Data {
        var header: [String: Any] = ["__metadata__": metadata]
        var body = Data()
        for (name, matrix) in matrices.sorted(by: { $0.key < $1.key }) {
            let begin = body.count
            for half in matrix.bits { withUnsafeBytes(of: half.littleEndian) { body.append(contentsOf: $0) } }
            header[name] = [
                "dtype": "F16", "shape": [matrix.rank, matrix.width],
                "data_offsets": [begin, body.count],
            ]
        }
        change(&header)
        let text = try! JSONSerialization.data(withJSONObject: header)
        return Self.length(UInt64(text.count)) + text + body
    }

    static func length(_ count: UInt64) -> Data {
        withUnsafeBytes(of: count.littleEndian) { Data($0) }
    }
}
