import CoreML

/// From Core ML's output to numbers to sample from.
enum Logits {
    /// Widens the logits of one position into `scores`, which has the vocabulary's size: the only
    /// copy that is made.
    static func read(_ array: MLMultiArray, into scores: inout [Float]) throws {
        let count = scores.count
        guard array.count == count, array.shape.last?.intValue == count,
            let stride = array.strides.last?.intValue, stride > 0
        else {
            throw ModelError.unexpectedOutput("logits of shape \(array.shape), not [1, 1, \(count)]")
        }
        let reach = (count - 1) * stride + 1  // elements; Core ML may pad rows
        switch array.dataType {
        case .float16:
            try array.withUnsafeBytes { bytes in
                let halves = try view(bytes, as: UInt16.self, reach: reach)
                for id in 0..<count { scores[id] = float(half: halves[id * stride]) }
            }
        case .float32:
            try array.withUnsafeBytes { bytes in
                let floats = try view(bytes, as: Float.self, reach: reach)
                for id in 0..<count { scores[id] = floats[id * stride] }
            }
        default:
            throw ModelError.unexpectedOutput("logits of type \(array.dataType.rawValue)")
        }
    }

    private static func view<T>(
        _ bytes: UnsafeRawBufferPointer, as type: T.Type, reach: Int
    ) throws -> UnsafeBufferPointer<T> {
        let elements = bytes.bindMemory(to: type)
        guard elements.count >= reach else {
            throw ModelError.unexpectedOutput("\(elements.count) logits in memory, not \(reach)")
        }
        return elements
    }
}
