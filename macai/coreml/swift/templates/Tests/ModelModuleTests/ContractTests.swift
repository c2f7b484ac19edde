import Foundation
import XCTest

@testable import ModelModule

/// The constants agree with each other and with the bundle beside the package, if there is one.
final class ContractTests: XCTestCase {
    private func manifest(_ change: (inout [String: Any]) -> Void = { _ in }) throws -> URL {
        let functions = Contract.variants.flatMap(\.functions).map { ($0.name, ["tokens": $0.tokens]) }
        var values: [String: Any] = [
            "contract": Contract.version, "package": Contract.packageName,
            "sha256": Contract.sha256, "context": Contract.context,
            "vocab_size": Contract.vocabularySize, "eos_token_ids": Array(Contract.eosTokenIDs),
            "functions": Dictionary(uniqueKeysWithValues: functions),
        ]
        change(&values)
        let folder = FileManager.default.temporaryDirectory.appending(path: UUID().uuidString)
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        try JSONSerialization.data(withJSONObject: values)
            .write(to: folder.appending(path: "macai.json"))
        return folder
    }

    func testTheConstantsAgree() {
        XCTAssertFalse(Contract.variants.isEmpty)
        for variant in Contract.variants {
            XCTAssertEqual(variant.decode.tokens, 1)
            XCTAssertTrue(variant.prefill.allSatisfy { (2...Contract.context).contains($0.tokens) })
        }
        let names = Contract.variants.map(\.adapter)
        XCTAssertEqual(Set(names).count, names.count)
        for shape in Contract.states.values {
            XCTAssertTrue((4...5).contains(shape.count))
            XCTAssertEqual(shape[shape.count - 2], Contract.context)
        }
        XCTAssertTrue(Contract.eosTokenIDs.allSatisfy { (0..<Contract.vocabularySize).contains($0) })
    }

    func testTheBundleBesideThePackageIsItsModel() throws {
        let bundle = URL(filePath: #filePath).appending(path: "../../../..").standardized
        let file = bundle.appending(path: "macai.json").path(percentEncoded: false)
        try XCTSkipUnless(FileManager.default.fileExists(atPath: file), "no bundle beside it")
        XCTAssertNoThrow(try Manifest.read(in: bundle, exactly: true))
    }

    func testItsOwnManifestIsAccepted() throws {
        XCTAssertNoThrow(try Manifest.read(in: manifest(), exactly: true))
    }

    func testAnotherExportIsRefusedOnlyIfAskedTo() throws {
        let other = try manifest { $0["sha256"] = "another" }
        XCTAssertNoThrow(try Manifest.read(in: other, exactly: false))
        XCTAssertThrowsError(try Manifest.read(in: other, exactly: true))
    }

    func testAnotherModelIsRefused() throws {
        let changes: [(inout [String: Any]) -> Void] = [
            { $0["context"] = Contract.context + 32 }, { $0["vocab_size"] = 1 },
            { $0["eos_token_ids"] = [Contract.vocabularySize] }, { $0["functions"] = [String: Any]() },
            { $0["package"] = "../other.mlpackage" },
        ]
        for change in changes {
            XCTAssertThrowsError(try Manifest.read(in: manifest(change), exactly: false)) {
                guard case .differentModel = $0 as? ModelError else { return XCTFail("\($0)") }
            }
        }
    }

    func testAnotherContractIsNamed() throws {
        let other = try manifest { $0 = ["contract": Contract.version + 1] }
        XCTAssertThrowsError(try Manifest.read(in: other, exactly: false)) {
            XCTAssertEqual(
                $0 as? ModelError,
                .contractVersion(found: Contract.version + 1, expected: Contract.version))
        }
    }

    func testAFolderWithoutManifestIsNamed() {
        let nowhere = FileManager.default.temporaryDirectory.appending(path: UUID().uuidString)
        XCTAssertThrowsError(try Manifest.read(in: nowhere, exactly: false)) {
            guard case .manifestUnreadable = $0 as? ModelError else { return XCTFail("\($0)") }
        }
    }
}
