/// A function of the model: what Core ML calls it, and how many tokens it takes at once.
public struct ModelFunction: Hashable, Sendable {
    public let name: String
    public let tokens: Int

    public init(name: String, tokens: Int) {
        self.name = name
        self.tokens = tokens
    }
}

/// The functions that belong together: the model's own, or those of one adapter.
public struct ModelVariant: Hashable, Sendable {
    /// The adapter's name; `nil` for the model's own functions.
    public let adapter: String?
    /// Takes a prompt in chunks; the shortest first. May be empty.
    public let prefill: [ModelFunction]
    /// Takes one token.
    public let decode: ModelFunction

    public init(adapter: String?, prefill: [ModelFunction], decode: ModelFunction) {
        self.adapter = adapter
        self.prefill = prefill
        self.decode = decode
    }

    /// All functions of the variant.
    public var functions: [ModelFunction] { prefill + [decode] }
}

/// What the functions' inputs and outputs are called: the same for every model of this contract.
enum Feature {
    static let inputIDs = "inputIds"
    static let position = "position"
    /// The row of a chunk whose logits are wanted. Only prefill functions have it.
    static let last = "last"
    static let logits = "logits"
}
