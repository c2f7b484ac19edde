import XCTest

@testable import ModelModule

final class PrefillPlanTests: XCTestCase {
    private let decode = ModelFunction(name: "decode", tokens: 1)
    private let short = ModelFunction(name: "prefill_16", tokens: 16)
    private let long = ModelFunction(name: "prefill_64", tokens: 64)

    private func calls(
        _ start: Int, _ end: Int, context: Int = 256, prefill: [ModelFunction]? = nil
    ) -> [Call] {
        let variant = ModelVariant(adapter: nil, prefill: prefill ?? [short, long], decode: decode)
        return PrefillPlan.calls(from: start, to: end, variant: variant, context: context)
    }

    func testNothingIsReadWhereNothingIsNew() {
        XCTAssertEqual(calls(5, 5), [])
    }

    func testFewTokensAreDecodedOneByOne() {
        XCTAssertEqual(
            calls(3, 5),
            [
                Call(function: decode, position: 3, count: 1),
                Call(function: decode, position: 4, count: 1),
            ])
    }

    func testTheShortestChunkThatTakesAllIsPadded() {
        XCTAssertEqual(calls(0, 10), [Call(function: short, position: 0, count: 10)])
        XCTAssertEqual(calls(0, 17), [Call(function: long, position: 0, count: 17)])
        XCTAssertEqual(calls(0, 10)[0].last, 9)
    }

    func testALongPromptIsCutIntoTheLongestChunks() {
        XCTAssertEqual(
            calls(0, 140),
            [
                Call(function: long, position: 0, count: 64),
                Call(function: long, position: 64, count: 64),
                Call(function: short, position: 128, count: 12),
            ])
    }

    func testNoChunkReachesBehindTheContext() {
        let near = calls(200, 256)
        XCTAssertEqual(near.prefix(3).map(\.function), [short, short, short])
        XCTAssertEqual(near.dropFirst(3).map(\.function), Array(repeating: decode, count: 8))
        for start in 0..<256 {
            let all = calls(start, 256)
            XCTAssertTrue(all.allSatisfy { $0.position + $0.function.tokens <= 256 })
            XCTAssertEqual(all.first?.position, start)
            XCTAssertEqual(all.last?.end, 256)
            XCTAssertTrue(zip(all, all.dropFirst()).allSatisfy { $0.end == $1.position })
        }
    }

    func testWithoutChunksAllIsDecoded() {
        XCTAssertEqual(calls(0, 30, prefill: []).map(\.function), Array(repeating: decode, count: 30))
    }

    func testThePrefixIsReusedButForTheLastToken() {
        XCTAssertEqual(PrefillPlan.sharedPrefix(of: [1, 2, 3], with: [1, 2, 3, 4]), 2)
        XCTAssertEqual(PrefillPlan.sharedPrefix(of: [1, 2, 3], with: [1, 9]), 1)
        XCTAssertEqual(PrefillPlan.sharedPrefix(of: [1, 2, 3], with: []), 0)
        XCTAssertEqual(PrefillPlan.sharedPrefix(of: [1], with: [1]), 0)
    }
}
