import CoreML
import Foundation

/// Runs compiled packages on what macai ran its model on, and says how close this device comes.
///
/// `golden.safetensors` has, as `Unet.inputs.sample` and so on, inputs and the model's outputs.
/// Each output should be at least 30 dB from the model's: less is a picture that looks wrong.
public struct SelfTest {
    public struct Outcome {
        public let package: String
        public let output: String
        public let decibels: Double
    }

    public static let least = 30.0

    private let tensors: [String: (dtype: String, shape: [Int], bytes: Data)]

    public init(golden: URL) throws {
        let file = try Data(contentsOf: golden, options: .mappedIfSafe)
        let length = file.prefix(8).enumerated().reduce(0) { $0 | Int($1.element) << (8 * $1.offset) }
        let header = try JSONSerialization.jsonObject(with: file.subdata(in: 8..<8 + length))
        var found: [String: (dtype: String, shape: [Int], bytes: Data)] = [:]
        for (name, value) in header as? [String: Any] ?? [:] where name != "__metadata__" {
            guard let entry = value as? [String: Any], let dtype = entry["dtype"] as? String,
                let shape = entry["shape"] as? [Int], let range = entry["data_offsets"] as? [Int]
            else { continue }
            let bytes = file.subdata(in: 8 + length + range[0]..<8 + length + range[1])
            found[name] = (dtype, shape, bytes)
        }
        tensors = found
    }

    /// `resources` is the folder of the .mlmodelc folders; a U-Net in two is not tried.
    public func run(resources: URL, configuration: MLModelConfiguration) throws -> [Outcome] {
        var outcomes: [Outcome] = []
        for package in Set(tensors.keys.map { String($0.prefix { $0 != "." }) }).sorted() {
            let url = resources.appendingPathComponent("\(package).mlmodelc")
            guard FileManager.default.fileExists(atPath: url.path) else { continue }
            let model = try MLModel(contentsOf: url, configuration: configuration)
            let given = try MLDictionaryFeatureProvider(dictionary: arrays("\(package).inputs."))
            let result = try model.prediction(from: given)
            for (name, wanted) in try arrays("\(package).outputs.") {
                guard let got = result.featureValue(for: name)?.multiArrayValue else { continue }
                let decibels = SelfTest.decibels(SelfTest.floats(got), SelfTest.floats(wanted))
                outcomes.append(Outcome(package: package, output: name, decibels: decibels))
            }
        }
        return outcomes
    }

    private func arrays(_ prefix: String) throws -> [String: MLMultiArray] {
        var made: [String: MLMultiArray] = [:]
        for (name, tensor) in tensors where name.hasPrefix(prefix) {
            let shape = tensor.shape.map { NSNumber(value: $0) }
            let kind: MLMultiArrayDataType = tensor.dtype == "F16" ? .float16 : .float32
            let array = try MLMultiArray(shape: shape, dataType: kind)
            tensor.bytes.withUnsafeBytes { source in
                array.withUnsafeMutableBytes { target, _ in target.copyMemory(from: source) }
            }
            made[String(name.dropFirst(prefix.count))] = array
        }
        return made
    }

    private static func floats(_ array: MLMultiArray) -> [Float] {
        (0..<array.count).map { array[$0].floatValue }
    }

    private static func decibels(_ got: [Float], _ wanted: [Float]) -> Double {
        let squares = zip(got, wanted).reduce(0.0) { $0 + pow(Double($1.0) - Double($1.1), 2) }
        let largest = wanted.reduce(0.0) { max($0, Double(abs($1))) }
        return 20 * log10(largest / max(sqrt(squares / Double(wanted.count)), 1e-30))
    }
}
