import CoreML
import Foundation

/// What loading is busy with.
public enum LoadingStage: Hashable, Sendable {
    case tokenizer
    /// Turning an .mlpackage into what Core ML loads: once per model.
    case compiling
    /// Loading a function. The first load after an installation or a system update specialises the
    /// model for the device, which can take minutes; later ones take seconds.
    case loading(function: String)
    /// Running each function once.
    case warmingUp
}

/// From a model on disk to one that runs.
enum ModelFiles {
    /// A compiled model: `model` itself if it is one, else compiled once and kept in `folder`.
    static func compiled(
        _ model: URL, keptIn folder: URL, progress: @Sendable (LoadingStage) -> Void
    ) async throws -> URL {
        if model.pathExtension == "mlmodelc" { return model }
        let kept = folder.appending(path: try keptName(of: model))
        if FileManager.default.fileExists(atPath: kept.path(percentEncoded: false)) { return kept }
        progress(.compiling)
        let compiled: URL
        do {
            compiled = try await MLModel.compileModel(at: model)
        } catch {
            throw ModelError.notLoaded(name: model.lastPathComponent, reason: "\(error)")
        }
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        do {
            try FileManager.default.moveItem(at: compiled, to: kept)
        } catch CocoaError.fileWriteFileExists {
            try? FileManager.default.removeItem(at: compiled)  // another process was faster
        }
        return kept
    }

    /// Removes a compiled model that was kept in `folder`; one from elsewhere is left alone.
    static func discard(_ compiled: URL, keptIn folder: URL) {
        // By components: a folder's URL may end in a slash or not.
        let parent = compiled.deletingLastPathComponent().standardizedFileURL.pathComponents
        if parent == folder.standardizedFileURL.pathComponents {
            try? FileManager.default.removeItem(at: compiled)
        }
    }

    /// Loads one function. Each `MLModel` stands for one function of a package.
    static func load(
        _ function: ModelFunction, of model: URL, on units: MLComputeUnits
    ) async throws -> sending MLModel {
        let configuration = MLModelConfiguration()
        configuration.computeUnits = units
        configuration.functionName = function.name
        do {
            return try await MLModel.load(contentsOf: model, configuration: configuration)
        } catch {
            throw ModelError.notLoaded(name: function.name, reason: "\(error)")
        }
    }

    /// The compute units that the model was exported for.
    static func units(_ name: String) -> MLComputeUnits {
        switch name {
        case "cpuOnly": .cpuOnly
        case "cpuAndGPU": .cpuAndGPU
        case "cpuAndNeuralEngine": .cpuAndNeuralEngine
        default: .all
        }
    }

    /// Another model, or a newer one in its place, has another name.
    private static func keptName(of model: URL) throws -> String {
        let modified = try model.resourceValues(forKeys: [.contentModificationDateKey])
            .contentModificationDate
        let seconds = Int(modified?.timeIntervalSince1970 ?? 0)
        let stem = model.deletingPathExtension().lastPathComponent
        return "\(stem)-\(Contract.sha256.prefix(16))-\(seconds).mlmodelc"
    }
}
