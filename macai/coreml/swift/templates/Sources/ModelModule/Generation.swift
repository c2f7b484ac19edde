import Foundation
import Tokenizers

extension LanguageModel {
    /// Replies to a conversation, with the model's chat template.
    ///
    /// The stream ends with a token that has a `finish`. Leaving the loop, or cancelling its task,
    /// ends the reply.
    public nonisolated func generate(
        messages: [Message], options: GenerationOptions = .init()
    ) -> AsyncThrowingStream<Token, any Error> {
        stream(options) { model in
            try model.tokenizer.applyChatTemplate(
                messages: messages.map { ["role": $0.role.rawValue, "content": $0.content] },
                chatTemplate: nil, addGenerationPrompt: true, truncation: false, maxLength: nil,
                tools: nil, additionalContext: options.templateContext)
        }
    }

    /// Goes on with a text, without a chat template.
    public nonisolated func generate(
        prompt: String, options: GenerationOptions = .init()
    ) -> AsyncThrowingStream<Token, any Error> {
        stream(options) { $0.tokenizer.encode(text: prompt) }
    }

    /// The whole reply to a conversation.
    public nonisolated func respond(
        to messages: [Message], options: GenerationOptions = .init()
    ) async throws -> String {
        try await generate(messages: messages, options: options).reduce(into: "") { $0 += $1.text }
    }

    private nonisolated func stream(
        _ options: GenerationOptions, prompt: @escaping @Sendable (LanguageModel) throws -> [Int]
    ) -> AsyncThrowingStream<Token, any Error> {
        AsyncThrowingStream { continuation in
            let task = Task {
                do {
                    try await self.reply(to: prompt(self), options) { continuation.yield($0) }
                    continuation.finish()
                } catch {
                    continuation.finish(throwing: error)
                }
            }
            continuation.onTermination = { _ in task.cancel() }
        }
    }

    private func reply(
        to prompt: [Int], _ options: GenerationOptions, emit: @Sendable (Token) -> Void
    ) async throws {
        let ticket = cancellations
        try options.check()
        guard !prompt.isEmpty else { throw ModelError.emptyPrompt }
        guard prompt.count <= Contract.context else {
            throw ModelError.contextFull(tokens: prompt.count, context: Contract.context)
        }
        await acquire()
        defer { release() }
        var timing = Timing(promptTokens: prompt.count)
        guard try await read(prompt, ticket, &timing) else {
            return emit(Token(id: nil, text: "", finish: timing.finish(.cancelled)))
        }
        try await write(options, ticket, &timing, emit)
    }

    /// Reads the part of a prompt that the state does not hold; returns whether it came to its end.
    private func read(_ prompt: [Int], _ ticket: Int, _ timing: inout Timing) async throws -> Bool {
        try warmUp()
        timing.reusedTokens = engine.keepPrefix(of: prompt)
        let calls = PrefillPlan.calls(
            from: timing.reusedTokens, to: prompt.count, variant: engine.usable,
            context: Contract.context)
        for call in calls {
            if isCancelled(since: ticket) { return false }
            try engine.run(call, prompt[call.position..<call.end])
            await Task.yield()  // lets cancel() in
        }
        return true
    }

    private func write(
        _ options: GenerationOptions, _ ticket: Int, _ timing: inout Timing,
        _ emit: @Sendable (Token) -> Void
    ) async throws {
        var sampler = Sampler(options)
        var text = ReplyText(stop: options.stop, tokenizer: tokenizer)
        while !isCancelled(since: ticket) {
            let id = try sampler.next(engine.scores)
            timing.count()
            if Contract.eosTokenIDs.contains(id) {
                return emit(Token(id: id, text: text.flush(), finish: timing.finish(.endOfText)))
            }
            let (piece, stopped) = text.add(id)
            if let reason = ending(stopped, timing.generatedTokens >= options.maxTokens) {
                let rest = stopped ? "" : text.flush()
                return emit(Token(id: id, text: piece + rest, finish: timing.finish(reason)))
            }
            emit(Token(id: id, text: piece, finish: nil))
            let call = Call(function: engine.usable.decode, position: engine.held.count, count: 1)
            try engine.run(call, [id])
            await Task.yield()
        }
        emit(Token(id: nil, text: text.flush(), finish: timing.finish(.cancelled)))
    }

    /// Why a reply ends here, if it does.
    private func ending(_ stopped: Bool, _ isLong: Bool) -> Finish.Reason? {
        if stopped { return .stopString }
        if isLong { return .maxTokens }
        return engine.held.count >= Contract.context ? .contextFull : nil
    }

    private func isCancelled(since ticket: Int) -> Bool {
        Task.isCancelled || cancellations != ticket
    }
}

/// The text of a reply: decoded, and cut at a stop string.
private struct ReplyText {
    private var stream: TextStream
    private var matcher: StopMatcher

    init(stop: [String], tokenizer: any Tokenizer) {
        stream = TextStream { tokenizer.decode(tokens: $0, skipSpecialTokens: true) }
        matcher = StopMatcher(stop)
    }

    mutating func add(_ id: Int) -> (text: String, stopped: Bool) { matcher.add(stream.add(id)) }

    /// What was held back, once no more tokens come.
    mutating func flush() -> String {
        let (text, stopped) = matcher.add(stream.flush())
        return stopped ? text : text + matcher.flush()
    }
}

/// What a reply took.
private struct Timing {
    let promptTokens: Int
    var reusedTokens = 0
    private(set) var generatedTokens = 0
    private let start = ContinuousClock.now
    private var firstToken: ContinuousClock.Instant?

    init(promptTokens: Int) { self.promptTokens = promptTokens }

    mutating func count() {
        generatedTokens += 1
        firstToken = firstToken ?? .now
    }

    func finish(_ reason: Finish.Reason) -> Finish {
        let now = ContinuousClock.now
        return Finish(
            reason: reason, promptTokens: promptTokens, reusedTokens: reusedTokens,
            generatedTokens: generatedTokens, prefill: (firstToken ?? now) - start,
            decode: now - (firstToken ?? now))
    }
}
