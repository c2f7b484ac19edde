// Stands in for the tokenizer of swift-transformers 1.2: the requirements the package uses. A message
// is ids in angle brackets, and so is the text of ids; 1 begins a conversation, 0 ends a message.

import Foundation

public typealias Message = [String: any Sendable]
public typealias ToolSpec = [String: any Sendable]
public enum ChatTemplateArgument { case literal(String), name(String) }

public protocol Tokenizer: Sendable {
    func encode(text: String) -> [Int]
    func encode(text: String, addSpecialTokens: Bool) -> [Int]
    func decode(tokens: [Int]) -> String
    func decode(tokens: [Int], skipSpecialTokens: Bool) -> String
    func applyChatTemplate(
        messages: [Message], chatTemplate: ChatTemplateArgument?, addGenerationPrompt: Bool,
        truncation: Bool, maxLength: Int?, tools: [ToolSpec]?,
        additionalContext: [String: any Sendable]?
    ) throws -> [Int]
}

public enum AutoTokenizer {
    public static func from(modelFolder: URL, strict: Bool = true) async throws -> Tokenizer {
        Brackets()
    }
}

private struct Brackets: Tokenizer {
    func encode(text: String) -> [Int] { encode(text: text, addSpecialTokens: true) }

    func encode(text: String, addSpecialTokens: Bool) -> [Int] {
        (addSpecialTokens ? [1] : []) + text.split(separator: ">").map { Int($0.dropFirst())! }
    }

    func decode(tokens: [Int]) -> String { decode(tokens: tokens, skipSpecialTokens: false) }

    func decode(tokens: [Int], skipSpecialTokens: Bool) -> String {
        tokens.filter { $0 > 3 || !skipSpecialTokens }.map { "<\($0)>" }.joined()
    }

    func applyChatTemplate(
        messages: [Message], chatTemplate: ChatTemplateArgument?, addGenerationPrompt: Bool,
        truncation: Bool, maxLength: Int?, tools: [ToolSpec]?,
        additionalContext: [String: any Sendable]?
    ) throws -> [Int] {
        [1] + messages.flatMap { message in
            encode(text: message["content"] as! String, addSpecialTokens: false) + [0]
        }
    }
}
