import Foundation

/// What can go wrong between a bundle on disk and a token.
public enum ModelError: Error, Equatable, Sendable {
    /// The folder holds no `macai.json`, or none that can be read.
    case manifestUnreadable(URL, reason: String)
    /// The bundle was written for another version of the contract.
    case contractVersion(found: Int, expected: Int)
    /// The bundle or model is not the one this package was generated for.
    case differentModel([String])
    /// Core ML could not compile or load the model.
    case notLoaded(name: String, reason: String)
    /// No adapter of that name.
    case unknownAdapter(String, known: [String])
    /// The model was exported without room for an adapter at run time.
    case noAdapterSlot
    /// The file of an adapter is damaged, or belongs to another model, or does not fit.
    case invalidAdapter(URL, reason: String)
    /// An option has a value that makes no sense.
    case invalidOption(String)
    /// There is nothing to answer.
    case emptyPrompt
    /// The prompt has more tokens than the model's context.
    case contextFull(tokens: Int, context: Int)
    /// The model returned something else than the contract says.
    case unexpectedOutput(String)
    /// No logit is a finite number: the computation overflowed.
    case logitsNotFinite
}

extension ModelError: LocalizedError {
    public var errorDescription: String? {
        switch self {
        case .manifestUnreadable(let url, let reason):
            "\(url.path(percentEncoded: false)) cannot be read: \(reason)"
        case .contractVersion(let found, let expected):
            "The model is of contract \(found); this package reads contract \(expected)."
        case .differentModel(let differences):
            "This is not the model the package was generated for: "
                + differences.joined(separator: "; ") + "."
        case .notLoaded(let name, let reason):
            "Core ML could not load \(name): \(reason)"
        case .unknownAdapter(let name, let known):
            "There is no adapter \(name), only: \(known.joined(separator: ", "))."
        case .noAdapterSlot:
            "The model has no room for an adapter at run time."
        case .invalidAdapter(let url, let reason):
            "The adapter \(url.path(percentEncoded: false)) cannot be used: \(reason)."
        case .invalidOption(let reason):
            "Invalid option: \(reason)."
        case .emptyPrompt:
            "The prompt has no tokens."
        case .contextFull(let tokens, let context):
            "\(tokens) tokens do not fit into the model's context of \(context)."
        case .unexpectedOutput(let reason):
            "The model returned something unexpected: \(reason)."
        case .logitsNotFinite:
            "The model's output overflowed: no logit is a finite number."
        }
    }

    public var recoverySuggestion: String? {
        switch self {
        case .manifestUnreadable:
            "Give the folder that macai export wrote, with macai.json in it."
        case .contractVersion, .differentModel:
            "Use the Swift package and the model of one and the same export."
        case .notLoaded:
            "Stateful models need iOS 18 or macOS 15; try other compute units."
        case .contextFull:
            "Shorten the conversation, or export with a larger context."
        case .logitsNotFinite:
            "Export with --precision fp32."
        case .noAdapterSlot:
            "Export the model with --adapter-slot."
        case .invalidAdapter:
            "Is the download complete? macai doctor tells what is in the file."
        case .unknownAdapter, .invalidOption, .emptyPrompt, .unexpectedOutput:
            nil
        }
    }
}
