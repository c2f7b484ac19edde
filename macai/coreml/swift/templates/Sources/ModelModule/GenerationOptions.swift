/// One turn of a conversation.
public struct Message: Hashable, Codable, Sendable {
    public enum Role: String, Hashable, Codable, Sendable {
        case system, user, assistant
    }

    public var role: Role
    public var content: String

    public init(role: Role, content: String) {
        self.role = role
        self.content = content
    }
}

/// How a reply is drawn, and where it ends.
public struct GenerationOptions: Sendable {
    /// The most tokens of a reply.
    public var maxTokens = 512
    /// 0 always takes the most probable token.
    public var temperature: Float = 0.7
    /// Draw only from the fewest tokens that hold this share of the probability; 1 for all.
    public var topP: Float = 0.95
    /// Draw only from this many most probable tokens, before `topP`; 0 for all.
    public var topK = 0
    /// The same seed, prompt and device give the same reply; `nil` for another one each time.
    public var seed: UInt64?
    /// A reply ends before any of these; they are not part of it.
    public var stop: [String] = []
    /// What else the chat template is given, such as `["enable_thinking": false]`.
    public var templateContext: [String: any Sendable] = [:]

    public init() {}

    /// Always the most probable token.
    public static var greedy: GenerationOptions {
        var options = GenerationOptions()
        options.temperature = 0
        return options
    }

    func check() throws {
        let problems = [
            (maxTokens < 1, "maxTokens is \(maxTokens), not at least 1"),
            (!(temperature >= 0 && temperature.isFinite), "temperature is \(temperature), not 0 or more"),
            (!(topP > 0 && topP <= 1), "topP is \(topP), not above 0 and at most 1"),
            (topK < 0, "topK is \(topK), not 0 or more"),
            (stop.contains(""), "a stop string is empty"),
        ]
        if let (_, problem) = problems.first(where: { $0.0 }) {
            throw ModelError.invalidOption(problem)
        }
    }
}

/// A token of a reply, and the text that became certain with it.
public struct Token: Hashable, Sendable {
    /// `nil` where a reply ends without one: it was cancelled.
    public let id: Int?
    /// Joined, these are the reply. Empty in the middle of a character, or while the text could
    /// still become a stop string.
    public let text: String
    /// On the last token only: why and how the reply ended.
    public let finish: Finish?
}

/// How a reply ended.
public struct Finish: Hashable, Sendable {
    public enum Reason: String, Hashable, Codable, Sendable {
        case endOfText, stopString, maxTokens, contextFull, cancelled
    }

    public let reason: Reason
    public let promptTokens: Int
    /// How many of the prompt's tokens the model still held from the turn before.
    public let reusedTokens: Int
    public let generatedTokens: Int
    /// From the request to the first token.
    public let prefill: Duration
    /// From the first token to the last.
    public let decode: Duration
}
