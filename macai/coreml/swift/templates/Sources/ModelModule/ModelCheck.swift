import CoreML

/// Compares a loaded function with the contract, so that a wrong model fails here and not with a
/// message from inside Core ML.
enum ModelCheck {
    static func differences(of model: MLModel, from function: ModelFunction) -> [String] {
        let description = model.modelDescription
        var expected = [Feature.inputIDs: [1, function.tokens], Feature.position: [1]]
        if function.tokens > 1 { expected[Feature.last] = [1] }
        var found: [String] = []
        for (name, shape) in expected.sorted(by: { $0.key < $1.key }) {
            let own = description.inputDescriptionsByName[name]?.multiArrayConstraint
            if own?.shape.map(\.intValue) != shape || own?.dataType != .int32 {
                found.append("\(function.name) takes no \(name), int32 \(shape)")
            }
        }
        for name in description.inputDescriptionsByName.keys.sorted() where expected[name] == nil {
            found.append("\(function.name) takes a \(name)")
        }
        if description.outputDescriptionsByName[Feature.logits] == nil {
            found.append("\(function.name) returns no \(Feature.logits)")
        }
        var states = Contract.states
        if let slot = Contract.slot { states[slot.state] = slot.shape }
        for (name, shape) in states.sorted(by: { $0.key < $1.key }) {
            let own = description.stateDescriptionsByName[name]?.stateConstraint
            if own?.bufferShape != shape || own?.dataType != .float16 {
                found.append("\(function.name) has no state \(name), float16 \(shape)")
            }
        }
        return found
    }
}
