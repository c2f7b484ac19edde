/// Token ids in, text out as early as it is certain: never half a character.
///
/// What an id adds is the difference between decoding the ids since the text before last with and
/// without it. No id can be decoded alone: some decoders strip a leading space.
struct TextStream {
    private let decode: ([Int]) -> String
    private var given: [Int] = []
    private var givenText = ""
    private var waiting: [Int] = []

    init(decode: @escaping ([Int]) -> String) { self.decode = decode }

    /// The text that `id` completes; empty in the middle of a character.
    mutating func add(_ id: Int) -> String {
        waiting.append(id)
        let text = newText()
        // A special token has no text: it waits, for the next id may need what is before it.
        if text.isEmpty || text.unicodeScalars.last == "\u{FFFD}" { return "" }
        given = waiting
        givenText = decode(given)
        waiting = []
        return text
    }

    /// What is left at the end; bytes that are no character become U+FFFD.
    mutating func flush() -> String {
        let text = waiting.isEmpty ? "" : newText()
        (given, givenText, waiting) = ([], "", [])
        return text
    }

    private func newText() -> String {
        let whole = decode(given + waiting)
        // By scalars: what a new one joins, such as an accent, is one Character with the last.
        guard whole.unicodeScalars.starts(with: givenText.unicodeScalars) else {
            return decode(waiting)
        }
        return String(Substring(whole.unicodeScalars.dropFirst(givenText.unicodeScalars.count)))
    }
}
