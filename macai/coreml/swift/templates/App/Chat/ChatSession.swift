import Foundation
import ModelModule
import Observation

/// A conversation and the model that takes part in it.
@MainActor
@Observable
final class ChatSession {
    enum Status: Equatable {
        case noModel
        case loading(String)
        case ready
        case replying
        case failed(String)
    }

    private(set) var status = Status.noModel
    private(set) var messages: [Message] = []
    /// How the last reply ended.
    private(set) var report = ""
    private var model: LanguageModel?
    private var reply: Task<Void, Never>?

    /// Opens the model that is in the app, if there is one.
    func openBundledModel() async {
        guard let file = Bundle.main.url(forResource: "macai", withExtension: "json") else { return }
        await open(file.deletingLastPathComponent())
    }

    /// Opens a bundle: the folder that `macai export` wrote.
    func open(_ bundle: URL) async {
        stop()
        (messages, report, model) = ([], "", nil)
        status = .loading("Opening")
        // Not given back: Core ML reads the weights as long as the model is in use.
        _ = bundle.startAccessingSecurityScopedResource()
        var configuration = LanguageModel.Configuration()
        configuration.progress = { stage in
            Task { @MainActor [weak self] in self?.show(stage) }
        }
        do {
            let opened = try await LanguageModel.load(bundle: bundle, configuration: configuration)
            try await opened.prewarm()
            model = opened
            status = .ready
        } catch {
            status = .failed(error.localizedDescription)
        }
    }

    /// Sends a message; the reply grows as it is written.
    func send(_ text: String) {
        guard let model, status == .ready, !text.isEmpty else { return }
        messages.append(Message(role: .user, content: text))
        let conversation = messages
        messages.append(Message(role: .assistant, content: ""))
        status = .replying
        reply = Task {
            do {
                for try await token in model.generate(messages: conversation) {
                    if Task.isCancelled { return }  // the messages may be another conversation's
                    messages[messages.count - 1].content += token.text
                    if let finish = token.finish { report = Self.describe(finish) }
                }
                if !Task.isCancelled { status = .ready }
            } catch {
                if !Task.isCancelled { status = .failed(error.localizedDescription) }
            }
        }
    }

    /// Ends the reply that is being written.
    func stop() {
        reply?.cancel()
        reply = nil
        if status == .replying { status = .ready }
    }

    /// Begins another conversation.
    func clear() {
        stop()
        (messages, report) = ([], "")
        if model != nil { status = .ready }
    }

    private func show(_ stage: LoadingStage) {
        guard case .loading = status else { return }
        switch stage {
        case .tokenizer: status = .loading("Opening the tokenizer")
        case .compiling: status = .loading("Compiling the model")
        case .loading: status = .loading("Loading: the first time this can take minutes")
        case .warmingUp: status = .loading("Warming up")
        }
    }

    private static func describe(_ finish: Finish) -> String {
        let speed = Double(finish.generatedTokens - 1) / max(finish.decode / .seconds(1), 1e-9)
        return "\(finish.generatedTokens) tokens, \(Int(speed)) a second (\(finish.reason.rawValue))"
    }
}
