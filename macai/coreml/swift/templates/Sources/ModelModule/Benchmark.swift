import CoreML
import Foundation

/// Measures this model on this device, and gives it as the JSON that `macai bench --import` reads.
///
/// Every sample forgets the conversation, reads the same prompt and replies to it. The choices of
/// compute units take turns, round after round, so that a slow moment meets all of them. Loading is
/// measured once a choice, and once more after that.
public struct Benchmark: Sendable {
    /// The choices of compute units, by Core ML's names. Each has a loaded model of its own: where
    /// memory is short, measure one at a time.
    public var units = ["cpuOnly", "cpuAndGPU", "cpuAndNeuralEngine"]
    /// Samples of each figure.
    public var rounds = 10
    /// The most tokens of a reply; the first is not counted as decoding.
    public var tokens = 65
    /// What the model goes on with.
    public var prompt = String(repeating: "The lighthouse stands where the land ends. ", count: 12)
    /// Told what is being done.
    public var progress: @Sendable (String) -> Void = { _ in }

    public init() {}

    /// Measures a bundle and returns the report, as UTF-8.
    public func report(of bundle: URL) async throws -> Data {
        let began = ContinuousClock.now
        var figures: [String: BenchmarkFigure] = [:]
        var order: [String] = []
        func add(_ name: String, _ unit: String, _ place: [String: Parameter], _ value: Double) {
            let figure = BenchmarkFigure(name: name, unit: unit, parameters: place)
            if figures[figure.id] == nil { order.append(figure.id) }
            figures[figure.id, default: figure].values.append(value)
        }
        var models: [(String, LanguageModel)] = []
        for name in units {
            let place: [String: Parameter] = ["runtime": .word(name)]
            for kind in ["first load", "load"] {
                progress("loading, \(name)")
                let start = ContinuousClock.now
                let model = try await load(bundle, on: name)
                try await model.prewarm()
                add(kind, "s", place, start.duration(to: .now) / .seconds(1))
                if kind == "load" { models.append((name, model)) }
            }
        }
        for round in 1...rounds {
            for (name, model) in round.isMultiple(of: 2) ? models.reversed() : models {
                progress("round \(round) of \(rounds), \(name)")
                let finish = try await reply(of: model)
                let place: [String: Parameter] = [
                    "runtime": .word(name), "context": .count(finish.promptTokens),
                ]
                let first = finish.prefill / .seconds(1)
                add("first token", "s", place, first)
                add("prefill", "tokens/s", place, Double(finish.promptTokens) / first)
                if finish.generatedTokens > 1 {
                    let seconds = finish.decode / .seconds(1)
                    add("decode", "tokens/s", place, Double(finish.generatedTokens - 1) / seconds)
                }
                add("process memory", "bytes", ["runtime": .word(name)], Self.footprint())
            }
        }
        let run = BenchmarkRun(
            figures: order.compactMap { figures[$0] }, rounds: rounds,
            seconds: began.duration(to: .now) / .seconds(1))
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
        return try encoder.encode(BenchmarkReport(runs: [run]))
    }

    private func load(_ bundle: URL, on units: String) async throws -> LanguageModel {
        var configuration = LanguageModel.Configuration()
        configuration.computeUnits = ModelFiles.units(units)
        return try await LanguageModel.load(bundle: bundle, configuration: configuration)
    }

    private func reply(of model: LanguageModel) async throws -> Finish {
        await model.releaseMemory()
        var options = GenerationOptions.greedy
        options.maxTokens = tokens
        var finish: Finish?
        for try await token in model.generate(prompt: prompt, options: options) {
            finish = token.finish ?? finish
        }
        guard let finish else { throw ModelError.emptyPrompt }
        return finish
    }

    /// What the system counts as this process's memory, in bytes; 0 where it does not say.
    private static func footprint() -> Double {
        #if canImport(Darwin)
            var info = task_vm_info_data_t()
            var count = mach_msg_type_number_t(
                MemoryLayout<task_vm_info_data_t>.size / MemoryLayout<natural_t>.size)
            let result = withUnsafeMutablePointer(to: &info) { pointer in
                pointer.withMemoryRebound(to: integer_t.self, capacity: Int(count)) { integers in
                    task_info(mach_task_self_, task_flavor_t(TASK_VM_INFO), integers, &count)
                }
            }
            return result == KERN_SUCCESS ? Double(info.phys_footprint) : 0
        #else
            return 0
        #endif
    }
}

/// A word or a number that a figure was measured at.
enum Parameter: Encodable, Sendable, CustomStringConvertible {
    case word(String)
    case count(Int)

    var description: String {
        switch self {
        case .word(let word): word
        case .count(let count): String(count)
        }
    }

    func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        switch self {
        case .word(let word): try container.encode(word)
        case .count(let count): try container.encode(count)
        }
    }
}

/// One number of the report with its samples.
struct BenchmarkFigure: Encodable, Sendable {
    let id: String
    let section = "coreml"
    let name: String
    let subject = Contract.name
    let unit: String
    let better: String
    let parameters: [String: Parameter]
    var values: [Double] = []

    init(name: String, unit: String, parameters: [String: Parameter]) {
        self.name = name
        self.unit = unit
        self.parameters = parameters
        better = unit == "tokens/s" ? "higher" : "lower"
        // The words first, as macai has them: runtime, then context.
        let pairs = parameters.sorted { $0.key > $1.key }.map { "\($0.key)=\($0.value)" }
        let word = name.replacingOccurrences(of: " ", with: "-")
        id = (["coreml", Contract.name, word] + pairs).joined(separator: "/")
    }
}

/// What one device measured.
struct BenchmarkRun: Encodable, Sendable {
    struct Machine: Encodable, Sendable {
        let system: String
        let architecture: String
        let chip: String
        let cores: Int
        let memory_bytes: Double
        let backend = "Core ML"
    }

    struct Settings: Encodable, Sendable {
        let quick = false
        let rounds: Int
        let complete = true
        let seconds: Double
    }

    let date: String
    let tool = "macai \(Contract.macaiVersion), Swift"
    let machine: Machine
    let versions = ["macai": Contract.macaiVersion]
    let settings: Settings
    let commands = ["swift run -c release ModelModuleBench BUNDLE device.json"]
    let figures: [BenchmarkFigure]

    init(figures: [BenchmarkFigure], rounds: Int, seconds: Double) {
        let process = ProcessInfo.processInfo
        self.figures = figures
        settings = Settings(rounds: rounds, seconds: seconds)
        date = String(ISO8601DateFormatter().string(from: Date()).prefix(10))
        machine = Machine(
            system: process.operatingSystemVersionString, architecture: "arm64",
            chip: Self.named("machdep.cpu.brand_string") ?? Self.named("hw.machine") ?? "unknown",
            cores: process.activeProcessorCount, memory_bytes: Double(process.physicalMemory))
    }

    /// What the system says of itself: "Apple M4", "iPhone17,1".
    private static func named(_ key: String) -> String? {
        #if canImport(Darwin)
            var size = 0
            guard sysctlbyname(key, nil, &size, nil, 0) == 0, size > 1 else { return nil }
            var bytes = [UInt8](repeating: 0, count: size)
            guard sysctlbyname(key, &bytes, &size, nil, 0) == 0 else { return nil }
            return String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
        #else
            return nil
        #endif
    }
}

/// The whole document.
struct BenchmarkReport: Encodable, Sendable {
    let kind = "macai-bench"
    let version = 1
    let runs: [BenchmarkRun]
}
