import CoreML
import StableDiffusion
import SwiftUI

/// A prompt, a button and a picture. `resources` is the folder with the compiled packages.
struct GenerateView: View {
    let resources: URL
    @State private var prompt = "a red apple"
    @State private var picture: CGImage?
    @State private var status = ""

    var body: some View {
        VStack {
            if let picture {
                Image(picture, scale: 1, label: Text(prompt)).resizable().scaledToFit()
            }
            TextField("Prompt", text: $prompt)
            Button("Make a picture") { Task { await generate() } }
            Text(status)
        }
        .padding()
    }

    private func generate() async {
        status = "loading"
        let (resources, prompt) = (resources, prompt)
        do {
            picture = try await Task.detached {
                let configuration = MLModelConfiguration()
                configuration.computeUnits = .@UNITS@
                let pipeline = try StableDiffusionPipeline(
                    resourcesAt: resources, controlNet: [@CONTROLNETS@],
                    configuration: configuration, reduceMemory: true)
                try pipeline.loadResources()
                var wanted = StableDiffusionPipeline.Configuration(prompt: prompt)
                wanted.encoderScaleFactor = @SCALE@
                wanted.decoderScaleFactor = @SCALE@
                wanted.schedulerType = .dpmSolverMultistepScheduler
                return try pipeline.generateImages(configuration: wanted).first ?? nil
            }.value
            status = ""
        } catch {
            status = error.localizedDescription
        }
    }
}
