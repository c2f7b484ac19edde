import Foundation

/// What the package checks in a bundle's `macai.json` before anything is loaded.
struct Manifest: Decodable {
    struct Function: Decodable {
        let tokens: Int
    }

    let contract: Int
    let package: String
    let sha256: String
    let functions: [String: Function]
    let context: Int
    let vocabularySize: Int
    let eosTokenIDs: [Int]

    enum CodingKeys: String, CodingKey {
        case contract, package, sha256, functions, context
        case vocabularySize = "vocab_size"
        case eosTokenIDs = "eos_token_ids"
    }

    private struct Version: Decodable {
        let contract: Int
    }

    /// Reads a bundle's manifest and compares it with what the package was generated from.
    ///
    /// - Parameter exactly: Whether it has to be the very same export, not only one alike.
    static func read(in bundle: URL, exactly: Bool) throws -> Manifest {
        let file = bundle.appending(path: "macai.json")
        let manifest: Manifest
        do {
            let data = try Data(contentsOf: file)
            let version = try JSONDecoder().decode(Version.self, from: data).contract
            guard version == Contract.version else {
                throw ModelError.contractVersion(found: version, expected: Contract.version)
            }
            manifest = try JSONDecoder().decode(Manifest.self, from: data)
        } catch let error as ModelError {
            throw error
        } catch {
            throw ModelError.manifestUnreadable(file, reason: "\(error)")
        }
        let differences = manifest.differences(exactly: exactly)
        guard differences.isEmpty else { throw ModelError.differentModel(differences) }
        return manifest
    }

    /// How it differs from `Contract`, in words.
    func differences(exactly: Bool) -> [String] {
        var found: [String] = []
        func compare<T: Equatable>(_ what: String, _ mine: T, _ expected: T) {
            if mine != expected { found.append("\(what) is \(mine), not \(expected)") }
        }
        compare("context", context, Contract.context)
        compare("vocabulary", vocabularySize, Contract.vocabularySize)
        compare("end of text", eosTokenIDs.sorted(), Contract.eosTokenIDs.sorted())
        for function in Contract.variants.flatMap(\.functions) {
            guard let tokens = functions[function.name]?.tokens else {
                found.append("there is no function \(function.name)")
                continue
            }
            compare("tokens of \(function.name)", tokens, function.tokens)
        }
        if exactly { compare("sha256", sha256, Contract.sha256) }
        if package.contains("/") || package.contains("..") {
            found.append("the package \(package) is not beside the manifest")
        }
        return found
    }
}
