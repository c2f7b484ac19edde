// Stands in for Core ML on Linux: the declarations that the package uses, as the iOS 18 SDK has them,
// and a pretended model behind them. Its next token is a function of all tokens that the state holds,
// so a token that is missing, moved or of another conversation changes every reply.

@_exported import Foundation

public enum MLComputeUnits: Int, Sendable { case cpuOnly, cpuAndGPU, all, cpuAndNeuralEngine }

public enum MLMultiArrayDataType: Int {
    case double = 65600
    case float32 = 65568
    case float16 = 65552
    case int32 = 131104
}

public protocol MLShapedArrayScalar {}
extension Int32: MLShapedArrayScalar {}

public struct MLShapedArray<Scalar: MLShapedArrayScalar>: @unchecked Sendable {
    public let scalars: [Scalar]
    public let shape: [Int]

    public init<S: Sequence>(scalars: S, shape: [Int]) where S.Element == Scalar {
        (self.scalars, self.shape) = (Array(scalars), shape)
    }
}

public class MLMultiArray {
    public let shape: [NSNumber]
    public let strides: [NSNumber]
    public let dataType: MLMultiArrayDataType
    public var count: Int { shape.reduce(1) { $0 * $1.intValue } }
    let memory: UnsafeMutableRawBufferPointer

    /// All zeros; neighbours of the last axis are `spacing` elements apart, and after a row there is
    /// room for `padding` more.
    init(_ shape: [Int], _ type: MLMultiArrayDataType, spacing: Int = 1, padding: Int = 0) {
        var strides: [Int] = []
        var size = spacing
        for length in shape.reversed() {
            strides.insert(size, at: 0)
            size = size * length + (strides.count == 1 ? padding : 0)
        }
        self.shape = shape.map { NSNumber(value: $0) }
        self.strides = strides.map { NSNumber(value: $0) }
        dataType = type
        memory = .allocate(byteCount: size * (type == .float16 ? 2 : 4), alignment: 16)
        memory.initializeMemory(as: UInt8.self, repeating: 0)
    }

    deinit { memory.deallocate() }

    public func withUnsafeBytes<R>(_ body: (UnsafeRawBufferPointer) throws -> R) rethrows -> R {
        try body(UnsafeRawBufferPointer(memory))
    }

    public func withUnsafeMutableBytes<R>(
        _ body: (UnsafeMutableRawBufferPointer, [Int]) throws -> R
    ) rethrows -> R {
        try body(memory, strides.map(\.intValue))
    }
}

public class MLFeatureValue {
    public let multiArrayValue: MLMultiArray?
    let integers: MLShapedArray<Int32>?

    init(_ array: MLMultiArray) { (multiArrayValue, integers) = (array, nil) }

    public init<Scalar>(shapedArray: MLShapedArray<Scalar>) {
        (multiArrayValue, integers) = (nil, shapedArray as? MLShapedArray<Int32>)
    }
}

public protocol MLFeatureProvider {
    func featureValue(for featureName: String) -> MLFeatureValue?
}

public class MLDictionaryFeatureProvider: MLFeatureProvider {
    private let dictionary: [String: Any]

    public init(dictionary: [String: Any]) throws { self.dictionary = dictionary }

    public func featureValue(for featureName: String) -> MLFeatureValue? {
        dictionary[featureName] as? MLFeatureValue
    }
}

public class MLPredictionOptions { public init() {} }

public class MLModelConfiguration {
    public var computeUnits = MLComputeUnits.all
    public var functionName: String?
    public init() {}
}

public class MLMultiArrayConstraint {
    public let shape: [NSNumber]
    public let dataType = MLMultiArrayDataType.int32
    init(_ shape: [Int]) { self.shape = shape.map { NSNumber(value: $0) } }
}

public class MLStateConstraint {
    public let bufferShape: [Int]
    public let dataType = MLMultiArrayDataType.float16
    init(_ shape: [Int]) { bufferShape = shape }
}

public class MLFeatureDescription {
    public var multiArrayConstraint: MLMultiArrayConstraint?
    public var stateConstraint: MLStateConstraint?
}

public class MLModelDescription {
    public var inputDescriptionsByName: [String: MLFeatureDescription] = [:]
    public var outputDescriptionsByName: [String: MLFeatureDescription] = [:]
    public var stateDescriptionsByName: [String: MLFeatureDescription] = [:]
}

public class MLState {
    let owner: String
    let arrays: [String: MLMultiArray]

    init(owner: String, arrays: [String: MLMultiArray]) {
        (self.owner, self.arrays) = (owner, arrays)
    }

    public func withMultiArray<R>(
        for stateName: String, _ body: (MLMultiArray) throws -> R
    ) rethrows -> R {
        try body(arrays[stateName]!)
    }
}

/// How the pretended model behaves, and what it was asked.
public enum Pretended {
    public enum Sharing { case works, isIgnored, fails }

    public static let tokens = [
        "decode": 1, "prefill_16": 16, "prefill_64": 64, "decode_pirate": 1, "prefill_pirate": 16,
    ]
    public static let state = [2, 1, 1, 128, 4]
    public static let vocabularySize = 48
    /// The slot: its name, its shape, and how far apart Core ML puts elements and rows.
    public static let slot = (name: "adapter", shape: [6, 8])
    nonisolated(unsafe) public static var spacing = (element: 1, row: 0)
    nonisolated(unsafe) public static var sharing = Sharing.works
    nonisolated(unsafe) public static var isFloat32 = false
    nonisolated(unsafe) public static var missing: String?
    nonisolated(unsafe) public static var log: [String] = []

    /// What an adapter does to every token: 0 for an empty slot, else each bit and place counts.
    public static func mark(_ adapter: [UInt16]) -> Int {
        adapter.reduce(0) { ($0 * 31 + Int($1)) % 100_003 }
    }

    /// The token after `ids`.
    public static func next(_ ids: [Int], pirate: Bool = false, mark: Int = 0) -> Int {
        let mixed = ids.enumerated().reduce((pirate ? 1000 : 0) + mark) { sum, item in
            (sum * 31 + (item.offset + 1) * (item.element + 7)) % 100_003
        }
        return mixed % vocabularySize
    }
}

public class MLModel {
    public let modelDescription = MLModelDescription()
    private let name: String
    private let tokens: Int

    private init(_ name: String, _ tokens: Int) {
        (self.name, self.tokens) = (name, tokens)
        let inputs = ["inputIds": [1, tokens], "position": [1], "last": [1]]
        for (input, shape) in inputs where tokens > 1 || input != "last" {
            let description = MLFeatureDescription()
            description.multiArrayConstraint = MLMultiArrayConstraint(shape)
            modelDescription.inputDescriptionsByName[input] = description
        }
        modelDescription.outputDescriptionsByName["logits"] = MLFeatureDescription()
        let caches = ["keyCache", "valueCache"].map { ($0, Pretended.state) }
        for (state, shape) in caches + [(Pretended.slot.name, Pretended.slot.shape)] {
            let description = MLFeatureDescription()
            description.stateConstraint = MLStateConstraint(shape)
            modelDescription.stateDescriptionsByName[state] = description
        }
    }

    public class func load(
        contentsOf url: URL, configuration: MLModelConfiguration = MLModelConfiguration()
    ) async throws -> MLModel {
        let name = configuration.functionName ?? ""
        guard let tokens = Pretended.tokens[name], name != Pretended.missing else {
            throw NSError(domain: "no function \(name)", code: 1)
        }
        return MLModel(name, tokens)
    }

    public class func compileModel(at url: URL) async throws -> URL {
        Pretended.log.append("compile")
        let made = FileManager.default.temporaryDirectory.appending(path: UUID().uuidString)
        try FileManager.default.createDirectory(at: made, withIntermediateDirectories: true)
        return made
    }

    public func makeState() -> MLState {
        let (element, row) = Pretended.spacing
        let arrays = modelDescription.stateDescriptionsByName.map { name, description in
            let isSlot = name == Pretended.slot.name
            return (
                name,
                MLMultiArray(
                    description.stateConstraint!.bufferShape, .float16,
                    spacing: isSlot ? element : 1, padding: isSlot ? row : 0)
            )
        }
        return MLState(owner: name, arrays: Dictionary(uniqueKeysWithValues: arrays))
    }

    public func prediction(
        from inputFeatures: any MLFeatureProvider, using state: MLState
    ) throws -> any MLFeatureProvider {
        let ids = inputFeatures.featureValue(for: "inputIds")!.integers!
        let position = Int(inputFeatures.featureValue(for: "position")!.integers!.scalars[0])
        let last = inputFeatures.featureValue(for: "last").map { Int($0.integers!.scalars[0]) } ?? 0
        precondition(ids.shape == [1, tokens] && ids.scalars.count == tokens && last < tokens)
        precondition(position + tokens <= Pretended.state[3], "behind the context")
        Pretended.log.append("\(name) \(position) \(last + 1)")
        var state = state
        if state.owner != name && Pretended.sharing != .works {
            if Pretended.sharing == .fails { throw NSError(domain: "another model's state", code: 2) }
            state = makeState()
        }
        let keys = state.arrays["keyCache"]!.memory.bindMemory(to: UInt16.self)
        let width = Pretended.state[4]
        for (row, id) in ids.scalars.enumerated() {
            for column in 0..<width { keys[(position + row) * width + column] = UInt16(id + 1) }
        }
        let seen = (0...(position + last)).map { Int(keys[$0 * width]) - 1 }
        let mark = Pretended.mark(Self.adapter(state.arrays[Pretended.slot.name]!))
        let next = Pretended.next(seen, pirate: name.hasSuffix("pirate"), mark: mark)
        let logits = Self.logits(next)
        return try MLDictionaryFeatureProvider(dictionary: ["logits": MLFeatureValue(logits)])
    }

    /// Chosen by the compiler where a prediction is made in an asynchronous function.
    public func prediction(
        from input: any MLFeatureProvider, using state: MLState,
        options: MLPredictionOptions = MLPredictionOptions()
    ) async throws -> any MLFeatureProvider {
        fatalError("not expected")
    }

    /// What is in the slot, row by row.
    private static func adapter(_ slot: MLMultiArray) -> [UInt16] {
        let halves = slot.memory.bindMemory(to: UInt16.self)
        let strides = slot.strides.map(\.intValue)
        return (0..<slot.shape[0].intValue).flatMap { row in
            (0..<slot.shape[1].intValue).map { halves[row * strides[0] + $0 * strides[1]] }
        }
    }

    private static func logits(_ best: Int) -> MLMultiArray {
        let count = Pretended.vocabularySize
        let array = MLMultiArray(
            [1, 1, count], Pretended.isFloat32 ? .float32 : .float16, spacing: 3)
        for id in 0..<count {
            if Pretended.isFloat32 {
                array.memory.bindMemory(to: Float.self)[id * 3] = id == best ? 5 : -1
            } else {
                array.memory.bindMemory(to: UInt16.self)[id * 3] = id == best ? 0x4500 : 0xBC00
            }
        }
        return array
    }
}
