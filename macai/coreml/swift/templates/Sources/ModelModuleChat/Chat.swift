import Foundation
import ModelModule

/// `swift run -c release ModelModuleChat BUNDLE [ADAPTER]`: a conversation in the terminal. The adapter
/// is the name of one in the bundle, or a file for the model's slot.
@main
struct Chat {
    static func main() async {
        let arguments = CommandLine.arguments.dropFirst()
        guard let folder = arguments.first, arguments.count <= 2 else {
            complain("usage: ModelModuleChat BUNDLE [ADAPTER]")
            exit(2)
        }
        do {
            try await talk(bundle: URL(filePath: folder), adapter: arguments.dropFirst().first)
        } catch {
            complain("error: \(error.localizedDescription)")
            exit(1)
        }
    }

    private static func talk(bundle: URL, adapter: String?) async throws {
        var configuration = LanguageModel.Configuration()
        let file = adapter.map { URL(filePath: $0) }
        let isFile = adapter.map { FileManager.default.fileExists(atPath: $0) } ?? false
        configuration.adapter = isFile ? nil : adapter
        configuration.progress = { complain("\($0) …") }
        let model = try await LanguageModel.load(bundle: bundle, configuration: configuration)
        if let file, isFile { try await model.loadAdapter(from: file) }
        try await model.prewarm()
        let readsInChunks = await model.readsPromptsInChunks
        if !readsInChunks {
            complain("prompts are read one token at a time: see README.md")
        }
        var conversation: [Message] = []
        while let line = ask() {
            conversation.append(Message(role: .user, content: line))
            var reply = ""
            for try await token in model.generate(messages: conversation) {
                reply += token.text
                FileHandle.standardOutput.write(Data(token.text.utf8))
                if let finish = token.finish { report(finish) }
            }
            conversation.append(Message(role: .assistant, content: reply))
        }
    }

    private static func ask() -> String? {
        FileHandle.standardError.write(Data("> ".utf8))
        return readLine()
    }

    private static func report(_ finish: Finish) {
        let speed = Double(finish.generatedTokens - 1) / max(finish.decode / .seconds(1), 1e-9)
        complain(
            "\n[\(finish.reason.rawValue): \(finish.promptTokens) tokens read"
                + " (\(finish.reusedTokens) reused) in \(finish.prefill),"
                + " \(finish.generatedTokens) written, \(Int(speed)) a second]")
    }

    private static func complain(_ text: String) {
        FileHandle.standardError.write(Data((text + "\n").utf8))
    }
}
