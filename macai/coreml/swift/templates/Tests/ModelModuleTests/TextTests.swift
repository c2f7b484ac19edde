import XCTest

@testable import ModelModule

final class TextTests: XCTestCase {
    /// A byte-level tokenizer: an id is a byte; 256 and more have no text.
    private func bytes(_ ids: [Int]) -> String {
        String(decoding: ids.filter { $0 < 256 }.map(UInt8.init), as: UTF8.self)
    }

    func testACharacterComesWhole() {
        var stream = TextStream(decode: bytes)
        let pieces = Array("aé🦙".utf8).map { stream.add(Int($0)) }
        XCTAssertEqual(pieces, ["a", "", "é", "", "", "", "🦙"])
        XCTAssertEqual(stream.flush(), "")
    }

    func testHalfACharacterIsGivenAtTheEnd() {
        var stream = TextStream(decode: bytes)
        XCTAssertEqual(stream.add(0xC3), "")
        XCTAssertEqual(stream.flush(), "\u{FFFD}")
    }

    func testAnAccentThatJoinsTheLastCharacterIsNotLost() {
        var stream = TextStream(decode: bytes)
        let text = Array("e\u{301}!".utf8).map { stream.add(Int($0)) }.joined()
        XCTAssertEqual(Array(text.unicodeScalars), Array("e\u{301}!".unicodeScalars))
    }

    func testATokenWithoutTextIsNoText() {
        var stream = TextStream(decode: bytes)
        XCTAssertEqual([97, 300, 98].map { stream.add($0) }, ["a", "", "b"])
    }

    func testASpaceThatADecoderStripsIsGiven() {
        let words = ["▁Hello", "▁big", "▁world"]
        var stream = TextStream { ids in
            let text = ids.map { words[$0] }.joined().replacing("▁", with: " ")
            return String(text.trimmingPrefix(" "))
        }
        XCTAssertEqual([0, 1, 2].map { stream.add($0) }.joined(), "Hello big world")
    }

    func testAStopStringEndsWhereverTheTextIsCut() {
        let text = "one two STOP three"
        for size in 1...text.count {
            var matcher = StopMatcher(["STOP", "STOPPED"])
            var given = ""
            var rest = Substring(text)
            var stopped = false
            while !rest.isEmpty && !stopped {
                let (piece, end) = matcher.add(String(rest.prefix(size)))
                given += piece
                stopped = end
                rest = rest.dropFirst(size)
            }
            XCTAssertTrue(stopped)
            XCTAssertEqual(given, "one two ")
        }
    }

    func testWhatOnlyBeganAStopStringIsGiven() {
        var matcher = StopMatcher(["###"])
        XCTAssertEqual(matcher.add("a ##").text, "a ")
        XCTAssertEqual(matcher.add("b #").text, "##b ")
        XCTAssertEqual(matcher.flush(), "#")
    }

    func testWithoutStopStringsNothingIsHeld() {
        var matcher = StopMatcher([])
        XCTAssertEqual(matcher.add("all of it").text, "all of it")
    }
}
