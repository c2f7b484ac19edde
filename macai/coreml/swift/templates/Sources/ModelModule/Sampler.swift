import Foundation

/// SplitMix64: small, fast, and the same on every device.
struct RandomSource: RandomNumberGenerator, Sendable {
    private var state: UInt64

    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xBF58_476D_1CE4_E5B9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
        return mixed ^ (mixed >> 31)
    }

    /// A number in 0..<1.
    mutating func unit() -> Double { Double(next() >> 11) * 0x1p-53 }
}

/// Draws the next token from logits, in Float32 on the CPU.
///
/// In half precision, as a graph would have to, many logits of a large vocabulary are equal and the
/// choice among them is an accident.
struct Sampler: Sendable {
    private let options: GenerationOptions
    private var random: RandomSource

    init(_ options: GenerationOptions) {
        self.options = options
        random = RandomSource(seed: options.seed ?? .random(in: .min ... .max))
    }

    /// The next token's id.
    mutating func next(_ scores: [Float]) throws -> Int {
        let best = try Self.greatest(scores)
        if options.temperature == 0 || options.topK == 1 { return best }
        let weights = Self.weights(scores, best: scores[best], temperature: options.temperature)
        let candidates = Self.candidates(weights, topK: options.topK, topP: options.topP)
        return draw(from: candidates, weights)
    }

    /// The id of the greatest score, of equal ones the first.
    static func greatest(_ scores: [Float]) throws -> Int {
        var best = -1
        var greatest = -Float.infinity
        for id in scores.indices where scores[id] > greatest {
            best = id
            greatest = scores[id]
        }
        guard best >= 0, greatest.isFinite else { throw ModelError.logitsNotFinite }
        return best
    }

    /// Probabilities up to a common factor: the best token's is 1.
    static func weights(_ scores: [Float], best: Float, temperature: Float) -> [Float] {
        scores.map { $0.isNaN ? 0 : exp(($0 - best) / temperature) }
    }

    /// The ids that top-k, then top-p, leave.
    ///
    /// Only the tokens above a floor are sorted. They are the first of all tokens in order, so where
    /// they suffice for both cuts the result is that of sorting the whole vocabulary.
    static func candidates(_ weights: [Float], topK: Int, topP: Float) -> [Int] {
        if topK == 0 && topP == 1 { return Array(weights.indices) }
        let total = sum(weights.indices, weights)
        for floor: Float in [1e-2, 1e-4, 1e-8, 0] {
            let ids = weights.indices.filter { weights[$0] >= floor }
            let suffices = topK > 0 ? ids.count >= topK : sum(ids, weights) >= Double(topP) * total
            guard suffices || floor == 0 else { continue }
            let ranked = ids.sorted {
                weights[$0] == weights[$1] ? $0 < $1 : weights[$0] > weights[$1]
            }
            return nucleus(topK > 0 ? Array(ranked.prefix(topK)) : ranked, weights, topP, total, topK > 0)
        }
        return []  // not reached: nothing is below the last floor
    }

    /// The fewest of the ranked ids that hold `topP` of the probability: of all tokens, or of those
    /// that top-k left.
    private static func nucleus(
        _ ranked: [Int], _ weights: [Float], _ topP: Float, _ total: Double, _ renormalise: Bool
    ) -> [Int] {
        if topP == 1 { return ranked }
        let wanted = Double(topP) * (renormalise ? sum(ranked, weights) : total)
        var held = 0.0
        for (count, id) in ranked.enumerated() {
            held += Double(weights[id])
            if held >= wanted { return Array(ranked.prefix(count + 1)) }
        }
        return ranked
    }

    private mutating func draw(from ids: [Int], _ weights: [Float]) -> Int {
        var left = random.unit() * Self.sum(ids, weights)
        for id in ids {
            left -= Double(weights[id])
            if left < 0 { return id }
        }
        return ids[ids.count - 1]  // rounding
    }

    private static func sum(_ ids: some Sequence<Int>, _ weights: [Float]) -> Double {
        ids.reduce(0) { $0 + Double(weights[$1]) }
    }
}
