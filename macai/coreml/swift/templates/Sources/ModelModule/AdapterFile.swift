import CoreML
import Foundation

/// An adapter that `macai export adapter` wrote, compared with the slot it is for.
///
/// The file is safetensors: the length of a header in 8 bytes, the header in JSON, and then A and B of
/// each layer in half precision, row by row. Nothing in it is believed before it is checked.
struct AdapterFile {
    /// What the adapter is called.
    let name: String
    private let slot: AdapterSlot
    private let contents: Data
    private let matrices: [Matrix]

    private struct Matrix {
        /// Where it is in the file.
        let bytes: Range<Int>
        /// Where it goes in the state, in elements.
        let place: Int
    }

    /// Why a file is refused.
    struct Invalid: Error {
        let reason: String
        init(_ reason: String) { self.reason = reason }
    }

    /// Reads all of a file.
    static func read(_ url: URL, for slot: AdapterSlot) throws -> AdapterFile {
        do {
            return try AdapterFile(Data(contentsOf: url), for: slot)
        } catch let invalid as Invalid {
            throw ModelError.invalidAdapter(url, reason: invalid.reason)
        } catch {
            throw ModelError.invalidAdapter(url, reason: "\(error)")
        }
    }

    init(_ contents: Data, for slot: AdapterSlot) throws {
        let start = try Self.bodyStart(contents)
        let text = contents[contents.startIndex + 8..<contents.startIndex + start]
        let header = try JSONDecoder().decode(Header.self, from: text)
        try Self.compare(header.metadata, with: slot)
        let body = start..<contents.count
        let found = try header.entries.map { try Self.matrix($0.key, $0.value, in: body, slot) }
        guard found.reduce(0, { $0 + $1.bytes.count }) == body.count else {
            throw Invalid("its matrices do not fill its \(contents.count) bytes")
        }
        try Self.checkPairs(header.entries)
        (name, self.slot, self.contents, matrices) = (
            header.metadata["name"] ?? "", slot, contents, found
        )
        guard matrices.allSatisfy({ isFinite($0.bytes) }) else {
            throw Invalid("it holds what is no finite number")
        }
    }

    /// Writes the adapter into a new state. What it has no matrices for stays zero.
    func write(into state: MLState) {
        state.withMultiArray(for: slot.state) { array in
            array.withUnsafeMutableBytes { bytes, strides in
                contents.withUnsafeBytes { file in
                    for matrix in matrices {
                        let source = UnsafeRawBufferPointer(rebasing: file[matrix.bytes])
                        copy(source, to: matrix.place, of: bytes, strides)
                    }
                }
            }
        }
    }

    /// Copies a matrix row by row of the state: Core ML may put space between rows, or elements.
    private func copy(
        _ source: UnsafeRawBufferPointer, to place: Int, of state: UnsafeMutableRawBufferPointer,
        _ strides: [Int]
    ) {
        let width = slot.shape[1]
        let count = source.count / 2
        var done = 0
        while done < count {
            let (row, column) = (place + done).quotientAndRemainder(dividingBy: width)
            let run = min(width - column, count - done)
            let first = row * strides[0] + column * strides[1]
            if strides[1] == 1 {
                let target = UnsafeMutableRawBufferPointer(
                    rebasing: state[2 * first..<2 * (first + run)])
                target.copyMemory(
                    from: UnsafeRawBufferPointer(rebasing: source[2 * done..<2 * (done + run)]))
            } else {
                for index in 0..<run {
                    let half = source.loadUnaligned(
                        fromByteOffset: 2 * (done + index), as: UInt16.self)
                    state.storeBytes(
                        of: half, toByteOffset: 2 * (first + index * strides[1]), as: UInt16.self)
                }
            }
            done += run
        }
    }

    private func isFinite(_ bytes: Range<Int>) -> Bool {
        contents.withUnsafeBytes { file in
            stride(from: bytes.lowerBound, to: bytes.upperBound, by: 2).allSatisfy {
                file.loadUnaligned(fromByteOffset: $0, as: UInt16.self) & 0x7C00 != 0x7C00
            }
        }
    }
}

extension AdapterFile {
    private struct Header: Decodable {
        struct Entry: Decodable {
            let dtype: String
            let shape: [Int]
            let offsets: [Int]

            enum CodingKeys: String, CodingKey {
                case dtype, shape
                case offsets = "data_offsets"
            }
        }

        private struct Key: CodingKey {
            let stringValue: String
            var intValue: Int? { nil }
            init?(stringValue: String) { self.stringValue = stringValue }
            init?(intValue: Int) { nil }
        }

        var metadata: [String: String] = [:]
        var entries: [String: Entry] = [:]

        init(from decoder: any Decoder) throws {
            let container = try decoder.container(keyedBy: Key.self)
            for key in container.allKeys {
                if key.stringValue == "__metadata__" {
                    metadata = try container.decode([String: String].self, forKey: key)
                } else {
                    entries[key.stringValue] = try container.decode(Entry.self, forKey: key)
                }
            }
        }
    }

    /// Longer headers are not read: a layer takes 200 bytes.
    private static let longestHeader: UInt64 = 16 << 20

    private static func bodyStart(_ contents: Data) throws -> Int {
        guard contents.count >= 8 else { throw Invalid("it has \(contents.count) bytes") }
        let length = contents.prefix(8).reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
        guard length <= longestHeader, Int(length) <= contents.count - 8 else {
            throw Invalid("it has \(contents.count) bytes, and a header of \(length)")
        }
        return 8 + Int(length)
    }

    private static func compare(_ metadata: [String: String], with slot: AdapterSlot) throws {
        guard metadata["format"] == "macai-adapter", metadata["version"] == "1" else {
            throw Invalid("it is no adapter file of version 1")
        }
        let different = slot.base.keys.sorted().filter { metadata["base.\($0)"] != slot.base[$0] }
        guard different.isEmpty else {
            throw Invalid(
                "it was made for another model: \(different.joined(separator: ", ")) differ")
        }
    }

    private static func matrix(
        _ name: String, _ entry: Header.Entry, in body: Range<Int>, _ slot: AdapterSlot
    ) throws -> Matrix {
        let (layer, letter) = parts(name)
        guard let place = slot.places[layer], letter == "A" || letter == "B" else {
            throw Invalid("the model has no room for \(name)")
        }
        let width = letter == "A" ? place.inputs : place.outputs
        guard entry.dtype == "F16", entry.shape.count == 2, entry.shape[1] == width,
            entry.offsets.count == 2, entry.shape[0] >= 1
        else {
            throw Invalid("\(name) is \(entry.dtype) \(entry.shape), not F16 [rank, \(width)]")
        }
        let rank = entry.shape[0]
        guard rank <= slot.rank else {
            throw Invalid("its rank is \(rank), and the model has room for \(slot.rank)")
        }
        let (begin, end) = (entry.offsets[0], entry.offsets[1])
        guard 0 <= begin, begin <= end, end <= body.count, end - begin == 2 * rank * width else {
            throw Invalid("\(name) is not at \(begin) to \(end) of \(body.count) bytes")
        }
        return Matrix(
            bytes: body.lowerBound + begin..<body.lowerBound + end,
            place: letter == "A" ? place.a : place.b)
    }

    /// Each layer has A and B, of one rank.
    private static func checkPairs(_ entries: [String: Header.Entry]) throws {
        for (name, entry) in entries {
            let (layer, letter) = parts(name)
            let other = "\(layer).\(letter == "A" ? "B" : "A")"
            guard entries[other]?.shape.first == entry.shape.first else {
                throw Invalid("\(other) is missing, or of another rank than \(name)")
            }
        }
    }

    /// A matrix's layer, and A or B.
    private static func parts(_ name: String) -> (layer: String, letter: String) {
        let dot = name.lastIndex(of: ".") ?? name.startIndex
        return (String(name[..<dot]), String(name[dot...].dropFirst()))
    }
}
