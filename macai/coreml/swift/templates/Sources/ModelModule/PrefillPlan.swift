/// One call of a function: how many tokens it takes, and where they go.
struct Call: Hashable, Sendable {
    let function: ModelFunction
    /// Of the first token; the others follow.
    let position: Int
    /// How many tokens; the rest of the function's rows is padding, written over later.
    let count: Int

    var end: Int { position + count }
    /// The row whose logits are wanted.
    var last: Int { count - 1 }
}

/// How a prompt is cut into calls. Nothing here knows of Core ML.
enum PrefillPlan {
    /// So few tokens go one by one: a padded chunk computes all of its rows.
    static let decodeAtMost = 4

    /// The calls that take the tokens at positions `start..<end`.
    ///
    /// A chunk goes only where all its rows are inside the context: near the end tokens are decoded
    /// one by one.
    static func calls(from start: Int, to end: Int, variant: ModelVariant, context: Int) -> [Call] {
        precondition(0 <= start && end <= context)
        var calls: [Call] = []
        var position = start
        while position < end {
            let left = end - position
            let function = next(at: position, left: left, variant: variant, context: context)
            calls.append(Call(function: function, position: position, count: min(left, function.tokens)))
            position += min(left, function.tokens)
        }
        return calls
    }

    /// How many tokens at the front of `prompt` are what the state holds; never all of them, since
    /// the logits of the last one are wanted.
    static func sharedPrefix(of prompt: [Int], with held: [Int]) -> Int {
        zip(prompt.dropLast(), held).prefix { $0 == $1 }.count
    }

    /// The shortest chunk that takes all that is left, else the longest that fits.
    private static func next(
        at position: Int, left: Int, variant: ModelVariant, context: Int
    ) -> ModelFunction {
        let fitting = variant.prefill.filter { position + $0.tokens <= context }
        guard left > decodeAtMost, let longest = fitting.max(by: { $0.tokens < $1.tokens }) else {
            return variant.decode
        }
        return fitting.filter { $0.tokens >= left }.min { $0.tokens < $1.tokens } ?? longest
    }
}
