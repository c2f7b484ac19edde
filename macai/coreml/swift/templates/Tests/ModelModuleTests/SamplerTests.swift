import XCTest

@testable import ModelModule

final class SamplerTests: XCTestCase {
    private func draws(_ options: GenerationOptions, _ scores: [Float], _ count: Int) throws -> [Int] {
        var sampler = Sampler(options)
        return try (0..<count).map { _ in try sampler.next(scores) }
    }

    func testGreedyTakesTheFirstOfTheGreatest() throws {
        XCTAssertEqual(try draws(.greedy, [0, 3, -1, 3], 2), [1, 1])
        XCTAssertEqual(try draws(.greedy, [.nan, 1, -.infinity], 1), [1])
    }

    func testAnOverflowIsAnError() {
        let overflows: [[Float]] = [
            [.nan, .nan], [-.infinity, -.infinity], [.infinity, 0],
        ]
        for scores in overflows {
            XCTAssertThrowsError(try draws(.greedy, scores, 1)) {
                XCTAssertEqual($0 as? ModelError, .logitsNotFinite)
            }
        }
    }

    func testASeedGivesTheSameReplyAgain() throws {
        var options = GenerationOptions()
        options.seed = 7
        let scores = (0..<50).map { Float($0 % 7) }
        XCTAssertEqual(try draws(options, scores, 20), try draws(options, scores, 20))
        options.seed = 8
        let others = try draws(options, scores, 20)
        options.seed = 7
        XCTAssertNotEqual(try draws(options, scores, 20), others)
    }

    func testRandomSourceIsSplitMix64() {
        var source = RandomSource(seed: 1_234_567)
        XCTAssertEqual(source.next(), 6_457_827_717_110_365_317)
        XCTAssertEqual(source.next(), 3_203_168_211_198_807_973)
    }

    func testTheNucleusIsThatOfSortingEverything() {
        var source = RandomSource(seed: 1)
        for topP: Float in [0.1, 0.5, 0.9, 0.999] {
            let weights = (0..<2000).map { _ in exp(-20 * Float(source.unit())) }
            let ranked = weights.indices.sorted { weights[$0] > weights[$1] }
            let total = weights.reduce(0) { $0 + Double($1) }
            var held = 0.0
            let expected = ranked.prefix { id in
                defer { held += Double(weights[id]) }
                return held < Double(topP) * total
            }
            XCTAssertEqual(Sampler.candidates(weights, topK: 0, topP: topP), Array(expected))
        }
    }

    func testTopKComesBeforeTopP() {
        let weights: [Float] = [0.1, 1, 0.5, 0.4]
        XCTAssertEqual(Sampler.candidates(weights, topK: 2, topP: 1), [1, 2])
        XCTAssertEqual(Sampler.candidates(weights, topK: 2, topP: 0.6), [1])
        XCTAssertEqual(Sampler.candidates(weights, topK: 9, topP: 1), [1, 2, 3, 0])
        XCTAssertEqual(Sampler.candidates(weights, topK: 0, topP: 1), [0, 1, 2, 3])
    }

    func testFrequenciesAreTheProbabilities() throws {
        var options = GenerationOptions()
        (options.temperature, options.topP, options.seed) = (2, 1, 3)
        let scores: [Float] = [0, 2 * log(3)]  // at temperature 2: 1 to 3
        let ones = try draws(options, scores, 4000).reduce(0, +)
        XCTAssertEqual(Double(ones) / 4000, 0.75, accuracy: 0.03)
    }

    func testOptionsAreChecked() {
        func check(_ change: (inout GenerationOptions) -> Void) throws {
            var options = GenerationOptions()
            change(&options)
            try options.check()
        }
        XCTAssertNoThrow(try check { _ in })
        XCTAssertThrowsError(try check { $0.temperature = -1 })
        XCTAssertThrowsError(try check { $0.temperature = .nan })
        XCTAssertThrowsError(try check { $0.topP = 0 })
        XCTAssertThrowsError(try check { $0.topK = -1 })
        XCTAssertThrowsError(try check { $0.maxTokens = 0 })
        XCTAssertThrowsError(try check { $0.stop = [""] })
    }

    func testHalfPrecisionIsWidenedExactly() {
        let cases: [(UInt16, Float)] = [
            (0x0000, 0), (0x3C00, 1), (0xC000, -2), (0x7BFF, 65504), (0x0400, 0x1p-14),
            (0x0001, 0x1p-24), (0x83FF, -0x1.ff8p-15), (0x7C00, .infinity), (0xFC00, -.infinity),
        ]
        for (bits, value) in cases { XCTAssertEqual(float(half: bits), value) }
        XCTAssertTrue(float(half: 0x7E00).isNaN)
        XCTAssertEqual(float(half: 0x8000).sign, .minus)
    }
}
