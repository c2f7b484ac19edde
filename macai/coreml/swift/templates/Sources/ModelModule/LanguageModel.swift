import CoreML
import Foundation
import Tokenizers

/// An exported language model, ready to talk.
///
/// ```swift
/// let model = try await LanguageModel.load(bundle: folder)
/// for try await token in model.generate(messages: [Message(role: .user, content: "Hello!")]) {
///     print(token.text, terminator: "")
/// }
/// ```
///
/// Predictions run one after another on the model's own queue, so no thread of Swift's cooperative
/// pool waits for the GPU. Replies asked for at the same time are given in turn.
///
/// The model remembers the tokens of the last conversation: where the next prompt begins with them,
/// only what is new is read.
public actor LanguageModel {
    /// How a model is loaded.
    public struct Configuration: Sendable {
        /// `nil` for those that the model was exported for.
        public var computeUnits: MLComputeUnits?
        /// The adapter to begin with; `nil` for the model's own functions, if it has such.
        public var adapter: String?
        /// Refuse a bundle of another export, even if its shapes are the same.
        public var requiresSameExport = false
        /// Where compiled models are kept. The system may empty it: they are then compiled again.
        public var compiledModels = URL.cachesDirectory.appending(path: "macai")
        /// Told what loading is busy with: the first load can take minutes, so show it.
        public var progress: @Sendable (LoadingStage) -> Void = { _ in }

        public init() {}
    }

    /// The tokenizer of the model.
    public nonisolated let tokenizer: any Tokenizer
    public nonisolated var unownedExecutor: UnownedSerialExecutor {
        queue.asUnownedSerialExecutor()
    }

    /// Cuts prompts, runs functions, holds keys and values. Only touched on the queue.
    var engine: Engine
    /// How often `cancel` was called: a reply ends when it is no longer what it was.
    var cancellations = 0

    private nonisolated let queue = DispatchSerialQueue(label: "macai.LanguageModel")
    private let configuration: Configuration
    private let compiledModel: URL
    private var pressure: MemoryPressure?
    private var isBusy = false
    private var waiting: [CheckedContinuation<Void, Never>] = []

    /// Loads a model and its tokenizer.
    ///
    /// - Parameters:
    ///   - model: An `.mlpackage`, or an `.mlmodelc` that Xcode or `coremlcompiler` made of it.
    ///   - tokenizer: The folder with `tokenizer.json`.
    ///   - configuration: How it is loaded.
    public init(
        modelAt model: URL, tokenizerAt tokenizer: URL, configuration: Configuration = .init()
    ) async throws {
        configuration.progress(.tokenizer)
        self.tokenizer = try await AutoTokenizer.from(modelFolder: tokenizer)
        self.configuration = configuration
        compiledModel = try await ModelFiles.compiled(
            model, keptIn: configuration.compiledModels, progress: configuration.progress)
        let variant = try Self.variant(configuration.adapter ?? Contract.variants[0].adapter)
        do {
            engine = try await Self.engine(variant, compiledModel, configuration)
        } catch {
            // The system may have emptied the cache in part: the next attempt compiles again.
            ModelFiles.discard(compiledModel, keptIn: configuration.compiledModels)
            throw error
        }
        pressure = MemoryPressure { [weak self] in
            Task { await self?.releaseMemory() }
        }
    }

    /// Loads a bundle: the folder that `macai export` wrote, wherever the app keeps it.
    ///
    /// The manifest is compared with the package first. A compiled model of the same name beside the
    /// manifest is preferred to the package.
    public static func load(
        bundle: URL, configuration: Configuration = .init()
    ) async throws -> LanguageModel {
        let manifest = try Manifest.read(in: bundle, exactly: configuration.requiresSameExport)
        let package = bundle.appending(path: manifest.package)
        let compiled = package.deletingPathExtension().appendingPathExtension("mlmodelc")
        let isCompiled = FileManager.default.fileExists(
            atPath: compiled.path(percentEncoded: false))
        return try await LanguageModel(
            modelAt: isCompiled ? compiled : package, tokenizerAt: bundle,
            configuration: configuration)
    }

    /// Runs each function once. Without it, the first reply does so and begins later.
    public func prewarm() async throws {
        await acquire()
        defer { release() }
        try warmUp()
    }

    /// Whether prompts are read in chunks. `false` after warming up means that Core ML does not let
    /// the functions share a state on this device: prompts are read token by token, slowly.
    public var readsPromptsInChunks: Bool { !engine.usable.prefill.isEmpty }

    /// Ends the reply that is being given, and those that wait, after their current token.
    public func cancel() { cancellations += 1 }

    /// Forgets the conversation and frees its keys and values, unless a reply is being given. Done by
    /// itself when the system runs short of memory; the next prompt is then read from its beginning.
    public func releaseMemory() {
        if !isBusy { engine.forget() }
    }

    /// Switches to an adapter, or with `nil` back to the model's own functions.
    ///
    /// The functions of the adapter are loaded and the others freed. Keys and values are not kept:
    /// another adapter's would be others.
    public func use(adapter: String?) async throws {
        await acquire()
        defer { release() }
        let variant = try Self.variant(adapter)
        if variant == engine.variant { return }
        engine.forget()
        engine = try await Self.engine(variant, compiledModel, configuration)
    }

    /// Loads an adapter into the model's slot: a file of `macai export adapter`, wherever the app got
    /// it. It replaces the one before, and takes no time worth showing.
    ///
    /// The file is read and checked as a whole; one that is refused changes nothing. Keys and values
    /// are not kept: another adapter's would be others.
    public func loadAdapter(from file: URL) async throws {
        await acquire()
        defer { release() }
        guard let slot = Contract.slot else { throw ModelError.noAdapterSlot }
        engine.apply(try AdapterFile.read(file, for: slot))
    }

    /// Empties the slot: back to the plain model.
    public func clearAdapter() async {
        await acquire()
        defer { release() }
        if engine.adapter != nil { engine.apply(nil) }
    }

    /// The name of the adapter in the slot.
    public var loadedAdapter: String? { engine.adapter?.name }

    func warmUp() throws {
        if engine.isWarm { return }
        configuration.progress(.warmingUp)
        try engine.warmUp()
    }

    /// Waits until no reply is being given: the state belongs to one at a time.
    func acquire() async {
        guard isBusy else {
            isBusy = true
            return
        }
        await withCheckedContinuation { waiting.append($0) }
    }

    /// Lets the next one in.
    func release() {
        if waiting.isEmpty {
            isBusy = false
        } else {
            waiting.removeFirst().resume()
        }
    }

    private static func variant(_ adapter: String?) throws -> ModelVariant {
        guard let variant = Contract.variants.first(where: { $0.adapter == adapter }) else {
            let known = Contract.variants.compactMap(\.adapter)
            throw ModelError.unknownAdapter(adapter ?? "nil", known: known)
        }
        return variant
    }

    private static func engine(
        _ variant: ModelVariant, _ model: URL, _ configuration: Configuration
    ) async throws -> sending Engine {
        let units = configuration.computeUnits ?? ModelFiles.units(Contract.computeUnits)
        var models: [ModelFunction: MLModel] = [:]
        for function in variant.functions {
            configuration.progress(.loading(function: function.name))
            models[function] = try await ModelFiles.load(function, of: model, on: units)
        }
        return try Engine(variant: variant, models: models)
    }
}
