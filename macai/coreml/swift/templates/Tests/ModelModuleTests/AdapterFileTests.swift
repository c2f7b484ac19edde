import Foundation
import XCTest

@testable import ModelModule

/// Files of adapters: whole ones are taken, and whatever is wrong with one is said.
final class AdapterFileTests: XCTestCase {
    private let slot = AdapterSlot(
        rank: 2, state: "adapter", shape: [6, 8], base: ["weights": "aa", "tokenizer": "bb"],
        layers: ["layers.0.q": [4, 6, 0, 16], "layers.0.o": [6, 4, 28, 40]])

    private func refused(_ contents: Data, _ reason: String, line: UInt = #line) {
        XCTAssertThrowsError(try AdapterFile(contents, for: slot), line: line) { error in
            let text = (error as? AdapterFile.Invalid)?.reason ?? "\(error)"
            XCTAssertTrue(text.contains(reason), text, line: line)
        }
    }

    func testAWholeFileIsTaken() throws {
        for rank in [1, 2] {
            let file = try AdapterFile(SampleAdapter(slot, rank: rank).contents(), for: slot)
            XCTAssertEqual(file.name, "sample")
        }
        var some = SampleAdapter(slot, rank: 2)
        some.matrices = some.matrices.filter { $0.key.hasPrefix("layers.0.o") }
        XCTAssertNoThrow(try AdapterFile(some.contents(), for: slot))
    }

    func testThePlacesOfASlotAreNamed() {
        let place = AdapterSlot.Place(inputs: 4, outputs: 6, a: 0, b: 16)
        XCTAssertEqual(slot.places["layers.0.q"], place)
    }

    func testAFileCutShortAnywhereIsRefused() {
        let whole = SampleAdapter(slot, rank: 2).contents()
        for count in 0..<whole.count {
            XCTAssertThrowsError(try AdapterFile(whole.prefix(count), for: slot))
        }
        refused(whole + Data([0, 0]), "do not fill")
    }

    func testAHeaderOfAbsurdLengthIsNotRead() {
        let whole = SampleAdapter(slot, rank: 1).contents()
        for length in [UInt64(whole.count), 1 << 40, .max] {
            refused(SampleAdapter.length(length) + whole.dropFirst(8), "a header of \(length)")
        }
        refused(SampleAdapter.length(2) + Data("[]".utf8), "typeMismatch")
    }

    func testAnotherModelIsNamed() {
        var other = SampleAdapter(slot, rank: 1)
        other.metadata["base.weights"] = "cc"
        refused(other.contents(), "made for another model: weights differ")
        other.metadata["base.tokenizer"] = nil
        refused(other.contents(), "tokenizer, weights differ")
    }

    func testAnotherFormatIsRefused() {
        for key in ["format", "version"] {
            var other = SampleAdapter(slot, rank: 1)
            other.metadata[key] = "9"
            refused(other.contents(), "no adapter file of version 1")
        }
        refused(SampleAdapter(slot, rank: 1).contents { $0["__metadata__"] = nil }, "no adapter file")
    }

    func testAHigherRankIsRefused() {
        refused(SampleAdapter(slot, rank: 3).contents(), "its rank is 3, and the model has room for 2")
    }

    func testALayerThatTheModelHasNoRoomForIsNamed() {
        var other = SampleAdapter(slot, rank: 1)
        other.matrices["layers.0.v.A"] = (1, 4, [1, 2, 3, 4])
        refused(other.contents(), "no room for layers.0.v.A")
        other = SampleAdapter(slot, rank: 1)
        other.matrices["layers.0.q.C"] = other.matrices.removeValue(forKey: "layers.0.q.A")
        refused(other.contents(), "no room for layers.0.q.C")
        other = SampleAdapter(slot, rank: 1)
        other.matrices["A"] = (1, 4, [1, 2, 3, 4])
        refused(other.contents(), "no room for A")
    }

    func testAWrongEntryIsRefused() {
        let name = "layers.0.o.A"
        let changes: [(String, Any, String)] = [
            ("dtype", "F32", "is F32 [1, 6]"), ("shape", [1, 5], "not F16 [rank, 6]"),
            ("shape", [6], "not F16"), ("shape", [0, 6], "not F16"), ("shape", [-1, 6], "not F16"),
            ("shape", [Int.max, 6], "its rank is"), ("shape", "x", "typeMismatch"),
            ("data_offsets", [0], "not F16"), ("data_offsets", [0, 8], "is not at 0 to 8"),
            ("data_offsets", [-12, 0], "is not at -12"), ("data_offsets", [12, 0], "is not at 12"),
            ("data_offsets", [0, Int.max], "is not at 0"), ("data_offsets", [Int.min, 0], "is not at"),
            ("data_offsets", [Int.max, Int.min], "is not at"),
        ]
        for (key, value, reason) in changes {
            let contents = SampleAdapter(slot, rank: 1).contents { header in
                var entry = header[name] as! [String: Any]
                entry[key] = value
                header[name] = entry
            }
            refused(contents, reason)
        }
    }

    func testALayerHasTwoMatricesOfOneRank() {
        var other = SampleAdapter(slot, rank: 2)
        other.matrices["layers.0.q.A"] = (1, 4, [1, 2, 3, 4])
        refused(other.contents(), "of another rank")
        other.matrices["layers.0.q.A"] = nil
        refused(other.contents(), "layers.0.q.A is missing")
    }

    func testWhatIsNoFiniteNumberIsRefused() {
        for bits in [0x7C00, 0xFC00, 0x7E00, 0xFFFF] as [UInt16] {
            var other = SampleAdapter(slot, rank: 1)
            other.matrices["layers.0.q.B"]!.bits[5] = bits
            refused(other.contents(), "no finite number")
        }
    }

    func testAFileThatIsNotThereIsNamed() {
        let nowhere = URL(filePath: "/nowhere/a.macaiadapter")
        XCTAssertThrowsError(try AdapterFile.read(nowhere, for: slot)) {
            guard case .invalidAdapter(nowhere, _) = $0 as? ModelError else {
                return XCTFail("\($0)")
            }
        }
    }
}
