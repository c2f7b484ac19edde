import Foundation
import ModelModule

/// `swift run -c release ModelModuleBench BUNDLE OUT.json`: measures the model on this Mac. An app
/// does the same on an iPhone or iPad with `Benchmark`, and shares what it returns.
@main
struct Bench {
    static func main() async {
        let arguments = Array(CommandLine.arguments.dropFirst())
        guard arguments.count == 2 else {
            complain("usage: ModelModuleBench BUNDLE OUT.json")
            exit(2)
        }
        do {
            var benchmark = Benchmark()
            benchmark.progress = { complain($0) }
            let report = try await benchmark.report(of: URL(filePath: arguments[0]))
            try report.write(to: URL(filePath: arguments[1]), options: .atomic)
            complain("\(arguments[1]): add it to a report with macai bench --import")
        } catch {
            complain("error: \(error.localizedDescription)")
            exit(1)
        }
    }

    private static func complain(_ text: String) {
        FileHandle.standardError.write(Data((text + "\n").utf8))
    }
}
