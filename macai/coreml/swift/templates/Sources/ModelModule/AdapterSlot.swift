/// Room that the model has for an adapter at run time: a state that its functions only read.
///
/// Zeros, which a new state is, add nothing: that is the plain model.
public struct AdapterSlot: Sendable {
    /// Where one layer's matrices lie in the state, counted in elements, row by row.
    struct Place: Hashable, Sendable {
        /// The layer's width before, which is that of A.
        let inputs: Int
        /// Its width behind, which is that of B.
        let outputs: Int
        let a: Int
        let b: Int
    }

    /// The highest rank that an adapter may have.
    public let rank: Int
    let state: String
    /// Of the state: rows, width of a row.
    let shape: [Int]
    /// The model's identity. The file of an adapter for it has the same.
    let base: [String: String]
    /// By the layer's name.
    let places: [String: Place]

    /// - Parameter layers: The four numbers of each layer's place.
    init(rank: Int, state: String, shape: [Int], base: [String: String], layers: [String: [Int]]) {
        self.rank = rank
        self.state = state
        self.shape = shape
        self.base = base
        places = layers.mapValues { Place(inputs: $0[0], outputs: $0[1], a: $0[2], b: $0[3]) }
    }
}
