import CoreML
import Foundation
import XCTest

@testable import ModelModule

/// Whole conversations with the pretended model: replies must be those of reading token by token.
final class ConversationTests: XCTestCase, @unchecked Sendable {
    private var folder = URL(filePath: "/")

    override func setUpWithError() throws {
        (Pretended.sharing, Pretended.isFloat32, Pretended.missing) = (.works, false, nil)
        Pretended.spacing = (1, 0)
        Pretended.log = []
        folder = FileManager.default.temporaryDirectory.appending(path: UUID().uuidString)
        try FileManager.default.createDirectory(
            at: folder.appending(path: Contract.packageName), withIntermediateDirectories: true)
        let functions = Contract.variants.flatMap(\.functions).map { ($0.name, ["tokens": $0.tokens]) }
        let manifest: [String: Any] = [
            "contract": 1, "package": Contract.packageName, "sha256": Contract.sha256,
            "context": Contract.context, "vocab_size": Contract.vocabularySize,
            "eos_token_ids": Array(Contract.eosTokenIDs),
            "functions": Dictionary(uniqueKeysWithValues: functions),
        ]
        try JSONSerialization.data(withJSONObject: manifest)
            .write(to: folder.appending(path: "macai.json"))
    }

    private func load(adapter: String? = nil) async throws -> LanguageModel {
        var configuration = LanguageModel.Configuration()
        configuration.compiledModels = folder.appending(path: "compiled")
        configuration.adapter = adapter
        return try await LanguageModel.load(bundle: folder, configuration: configuration)
    }

    /// A message of some tokens; a longer one begins with a shorter one.
    private func message(_ count: Int) -> [Int] { (0..<count).map { 4 + $0 * 7 % 40 } }

    private func text(_ ids: [Int]) -> String { ids.filter { $0 > 3 }.map { "<\($0)>" }.joined() }

    private func expected(
        _ message: [Int], _ count: Int, pirate: Bool = false, mark: Int = 0
    ) -> [Int] {
        var all = [1] + message + [0]
        var reply: [Int] = []
        while reply.count < count && !(reply.last.map(Contract.eosTokenIDs.contains) ?? false) {
            reply.append(Pretended.next(all, pirate: pirate, mark: mark))
            all.append(reply[reply.count - 1])
        }
        return reply
    }

    private func reply(
        _ model: LanguageModel, _ message: [Int], _ maxTokens: Int = 6, stop: [String] = []
    ) async throws -> (ids: [Int], text: String, finish: Finish) {
        var options = GenerationOptions.greedy
        (options.maxTokens, options.stop) = (maxTokens, stop)
        var tokens: [Token] = []
        let messages = [Message(role: .user, content: text(message))]
        for try await token in model.generate(messages: messages, options: options) {
            tokens.append(token)
        }
        XCTAssertTrue(tokens.dropLast().allSatisfy { $0.finish == nil })
        let finish = try XCTUnwrap(tokens.last?.finish)
        return (tokens.compactMap(\.id), tokens.map(\.text).joined(), finish)
    }

    func testRepliesAreThoseOfReadingTokenByToken() async throws {
        let model = try await load()
        for count in [1, 3, 15, 16, 40, 64, 65, 100, 120] {
            let (ids, text, _) = try await reply(model, message(count))
            XCTAssertEqual(ids, expected(message(count), 6))
            XCTAssertEqual(text, self.text(ids))
        }
        XCTAssertTrue(Pretended.log.contains { $0.hasPrefix("prefill_64") })
    }

    func testTheBeginningOfAConversationIsReused() async throws {
        let model = try await load()
        for (count, reused) in [(50, 0), (60, 51), (30, 31), (60, 31)] {
            let (ids, _, finish) = try await reply(model, message(count))
            XCTAssertEqual(finish.reusedTokens, reused)
            XCTAssertEqual(ids, expected(message(count), 6))
        }
        await model.releaseMemory()
        let (ids, _, finish) = try await reply(model, message(60))
        XCTAssertEqual(finish.reusedTokens, 0)
        XCTAssertEqual(ids, expected(message(60), 6))
    }

    func testAStateThatIsNotSharedIsFoundOut() async throws {
        for sharing in [Pretended.Sharing.isIgnored, .fails, .works] {
            Pretended.sharing = sharing
            let model = try await load()
            try await model.prewarm()
            let readsInChunks = await model.readsPromptsInChunks
            XCTAssertEqual(readsInChunks, sharing == .works)
            let (ids, _, _) = try await reply(model, message(30))
            XCTAssertEqual(ids, expected(message(30), 6))
        }
    }

    func testAnAdapterIsAnotherModel() async throws {
        Pretended.isFloat32 = true
        let model = try await load()
        for adapter in [nil, "pirate", nil] {
            try await model.use(adapter: adapter)
            let (ids, _, finish) = try await reply(model, message(20))
            XCTAssertEqual(ids, expected(message(20), 6, pirate: adapter != nil))
            XCTAssertEqual(finish.reusedTokens, 0)
        }
        let (ids, _, _) = try await reply(load(adapter: "pirate"), message(20))
        XCTAssertEqual(ids, expected(message(20), 6, pirate: true))
        do {
            try await model.use(adapter: "no")
            XCTFail("there is none")
        } catch {
            XCTAssertEqual(error as? ModelError, .unknownAdapter("no", known: ["pirate"]))
        }
    }

    func testAnAdapterIsLoadedIntoTheSlotAndClearedAgain() async throws {
        let slot = try XCTUnwrap(Contract.slot)
        for spacing in [(1, 0), (1, 5), (3, 0)] {
            Pretended.spacing = spacing
            let model = try await load()
            for seed in [3, 50, nil] as [UInt16?] {
                var mark = 0
                if let seed {
                    let sample = SampleAdapter(slot, rank: 1, first: seed)
                    let file = folder.appending(path: "\(seed).macaiadapter")
                    try sample.contents().write(to: file)
                    try await model.loadAdapter(from: file)
                    mark = Pretended.mark(sample.state)
                    XCTAssertNotEqual(mark, 0)
                } else {
                    await model.clearAdapter()
                }
                for _ in 0..<2 {
                    let (ids, _, finish) = try await reply(model, message(20))
                    XCTAssertEqual(ids, expected(message(20), 6, mark: mark))
                    XCTAssertEqual(finish.reusedTokens, 0)
                    await model.releaseMemory()  // a new state has the adapter as well
                }
                let name = await model.loadedAdapter
                XCTAssertEqual(name, seed == nil ? nil : "sample")
            }
        }
    }

    /// Beside this file: layer by layer A and B, whose bits count up from 1.
    func testAFileThatMacaiWroteIsTheSampleOfThisTest() async throws {
        let file = URL(filePath: #filePath).deletingLastPathComponent()
            .appending(path: "macai.macaiadapter")
        let sample = try SampleAdapter(XCTUnwrap(Contract.slot), rank: 2)
        let model = try await load()
        try await model.loadAdapter(from: file)
        let (ids, _, _) = try await reply(model, message(20))
        XCTAssertEqual(ids, expected(message(20), 6, mark: Pretended.mark(sample.state)))
    }

    func testAnAdapterThatIsRefusedChangesNothing() async throws {
        let slot = try XCTUnwrap(Contract.slot)
        let model = try await load()
        let good = SampleAdapter(slot, rank: 2, first: 9)
        let file = folder.appending(path: "a.macaiadapter")
        try good.contents().write(to: file)
        try await model.loadAdapter(from: file)
        _ = try await reply(model, message(20))
        try good.contents().dropLast().write(to: file)
        do {
            try await model.loadAdapter(from: file)
            XCTFail("it is cut short")
        } catch {
            guard case .invalidAdapter(file, _) = error as? ModelError else {
                return XCTFail("\(error)")
            }
        }
        let (ids, _, finish) = try await reply(model, message(20))
        XCTAssertEqual(ids, expected(message(20), 6, mark: Pretended.mark(good.state)))
        XCTAssertGreaterThan(finish.reusedTokens, 0)
    }

    func testAReplyEndsWithTheContext() async throws {
        let model = try await load()
        var reasons: Set<Finish.Reason> = []
        for count in 110...126 {
            let (ids, _, finish) = try await reply(model, message(count), 100)
            XCTAssertEqual(ids, expected(message(count), finish.generatedTokens))
            reasons.insert(finish.reason)
            if finish.reason == .contextFull {
                XCTAssertEqual(finish.promptTokens + finish.generatedTokens, Contract.context + 1)
            }
        }
        XCTAssertTrue(reasons.contains(.contextFull))
        XCTAssertTrue(reasons.isSubset(of: [.contextFull, .endOfText]))
        do {
            _ = try await reply(model, message(127))
            XCTFail("it does not fit")
        } catch {
            XCTAssertEqual(error as? ModelError, .contextFull(tokens: 129, context: 128))
        }
    }

    func testAReplyEndsBeforeAStopString() async throws {
        let all = expected(message(12), 6)
        let stop = text([all[2]])
        let (_, text, finish) = try await reply(load(), message(12), stop: [stop])
        XCTAssertEqual(finish.reason, .stopString)
        XCTAssertEqual(text, self.text(Array(all[..<2])))
    }

    func testRepliesAreGivenOneAfterAnother() async throws {
        let model = try await load()
        async let first = reply(model, message(9), 40)
        async let second = reply(model, message(11), 40)
        let replies = try await [(9, first), (11, second)]
        for (count, reply) in replies {
            XCTAssertEqual(reply.ids, expected(message(count), reply.finish.generatedTokens))
        }
    }

    func testAReplyCanBeCancelledAndTheNextIsRight() async throws {
        let model = try await load()
        var options = GenerationOptions.greedy
        options.maxTokens = 1000
        let messages = [Message(role: .user, content: text(message(5)))]
        var last: Token?
        for try await token in model.generate(messages: messages, options: options) {
            if last == nil { await model.cancel() }
            last = token
        }
        XCTAssertNotNil(last?.finish)
        for try await _ in model.generate(messages: messages, options: options) { break }
        let (ids, _, _) = try await reply(model, message(33))
        XCTAssertEqual(ids, expected(message(33), 6))
    }

    func testAModelIsCompiledOnce() async throws {
        _ = try await load()
        _ = try await load()
        XCTAssertEqual(Pretended.log.filter { $0 == "compile" }.count, 1)
    }

    func testAFunctionThatIsMissingIsNamedAndTheCompiledModelDropped() async throws {
        Pretended.missing = "decode"
        do {
            _ = try await load()
            XCTFail("it is missing")
        } catch {
            guard case .notLoaded(name: "decode", _) = error as? ModelError else {
                return XCTFail("\(error)")
            }
        }
        Pretended.missing = nil
        _ = try await load()
        XCTAssertEqual(Pretended.log.filter { $0 == "compile" }.count, 2)
    }
}
