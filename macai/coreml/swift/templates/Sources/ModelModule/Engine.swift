import CoreML
import Foundation

/// The loaded functions of one variant, and the keys and values of the tokens they have seen.
///
/// Not safe to use from several threads: `LanguageModel` owns one and calls it from its own queue.
///
/// **One state for several functions.** Core ML's documentation says that a state is passed to
/// predictions of the model that made it; it does not say whether another function of the same
/// package, which is an `MLModel` of its own, may write to it. Published apps do exactly that, with a
/// state that the decoding function made. `warmUp` tries it: a prefill function whose keys do not
/// arrive in the state is not used again, and prompts are then read one token at a time, which is
/// slow but right.
final class Engine {
    let variant: ModelVariant
    /// The variant without the functions that do not share the state.
    private(set) var usable: ModelVariant
    /// The ids whose keys and values the state holds, position by position.
    private(set) var held: [Int] = []
    /// The logits after the last of them.
    private(set) var scores = [Float](repeating: 0, count: Contract.vocabularySize)
    /// What every new state is given, if anything.
    private(set) var adapter: AdapterFile?
    private let models: [ModelFunction: MLModel]
    private var state: MLState?
    private(set) var isWarm = false

    init(variant: ModelVariant, models: [ModelFunction: MLModel]) throws {
        let differences = variant.functions.flatMap { function in
            models[function].map { ModelCheck.differences(of: $0, from: function) }
                ?? ["there is no function \(function.name)"]
        }
        guard differences.isEmpty else { throw ModelError.differentModel(differences) }
        self.variant = variant
        usable = variant
        self.models = models
    }

    /// Forgets what does not begin `prompt`; returns how many ids are left, fewer than all.
    func keepPrefix(of prompt: [Int]) -> Int {
        let kept = PrefillPlan.sharedPrefix(of: prompt, with: held)
        held.removeSubrange(kept...)
        return kept
    }

    /// Runs one call on its ids.
    ///
    /// What the state holds behind the call's position is written over before it is seen, so going
    /// back needs no more than forgetting ids.
    func run(_ call: Call, _ ids: some Collection<Int>) throws {
        precondition(ids.count == call.count && call.position <= held.count)
        held.removeSubrange(call.position...)  // not known to be right until the call succeeded
        try autoreleasepool {
            let input = try Self.input(call, ids)
            let output = try model(call.function).prediction(from: input, using: currentState())
            guard let logits = output.featureValue(for: Feature.logits)?.multiArrayValue else {
                throw ModelError.unexpectedOutput("no \(Feature.logits)")
            }
            try Logits.read(logits, into: &scores)
        }
        held += ids
    }

    /// Frees the keys and values: the next prompt is read from its beginning.
    func forget() {
        state = nil
        held = []
    }

    /// Goes on with another adapter in the model's slot, or with none. Keys and values are freed, for
    /// they are not those that it would have made.
    func apply(_ adapter: AdapterFile?) {
        self.adapter = adapter
        forget()
    }

    /// Runs each function once, so that the first reply does not wait for it, and finds out which
    /// prefill functions share the state with the decoding one.
    func warmUp() throws {
        if isWarm { return }
        let id = Contract.bosTokenID ?? Contract.eosTokenIDs.min() ?? 0
        held = []
        try run(Call(function: variant.decode, position: 0, count: 1), [id])
        let sharing = variant.prefill.filter { function in
            StateProbe.clear(currentState())
            held = []
            let call = Call(function: function, position: 0, count: 1)
            return (try? run(call, [id])) != nil && StateProbe.isWritten(currentState())
        }
        usable = ModelVariant(adapter: variant.adapter, prefill: sharing, decode: variant.decode)
        held = []
        isWarm = true
    }

    private func model(_ function: ModelFunction) throws -> MLModel {
        guard let model = models[function] else {
            throw ModelError.notLoaded(name: function.name, reason: "it is of another variant")
        }
        return model
    }

    /// The state, made by the decoding function. A new one is all zeros.
    private func currentState() -> MLState {
        if let state { return state }
        // The initialiser saw to it that all functions are there.
        let made = models[variant.decode]!.makeState()
        adapter?.write(into: made)
        state = made
        return made
    }

    private static func input(_ call: Call, _ ids: some Collection<Int>) throws -> MLFeatureProvider {
        let rows = call.function.tokens
        let padding = repeatElement(Int32(0), count: rows - call.count)
        let tokens = ids.map(Int32.init) + padding
        var features = [
            Feature.inputIDs: MLShapedArray<Int32>(scalars: tokens, shape: [1, rows]),
            Feature.position: MLShapedArray<Int32>(scalars: [Int32(call.position)], shape: [1]),
        ]
        if rows > 1 {
            features[Feature.last] = MLShapedArray<Int32>(scalars: [Int32(call.last)], shape: [1])
        }
        let values = features.mapValues { MLFeatureValue(shapedArray: $0) }
        return try MLDictionaryFeatureProvider(dictionary: values)
    }
}

/// Looks at the first layer's key of position 0, to see whether a call wrote it.
enum StateProbe {
    private static let name = Contract.states.keys.sorted().first ?? ""
    /// Its last axis holds one head's numbers.
    private static let width = Contract.states[name]?.last ?? 0

    static func clear(_ state: MLState) {
        visit(state) { $0 = 0 }
    }

    static func isWritten(_ state: MLState) -> Bool {
        var written = false
        visit(state) { written = written || $0 & 0x7FFF != 0 }
        return written
    }

    private static func visit(_ state: MLState, _ body: (inout UInt16) -> Void) {
        state.withMultiArray(for: name) { array in
            array.withUnsafeMutableBytes { bytes, strides in
                let halves = bytes.bindMemory(to: UInt16.self)
                for column in 0..<width { body(&halves[column * (strides.last ?? 1)]) }
            }
        }
    }
}
