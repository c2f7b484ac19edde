// swift-tools-version: 6.0
import PackageDescription

let package = Package(
    name: "ModelModule",
    targets: [
        .target(name: "CoreML"),
        .target(name: "Tokenizers"),
        .target(name: "ModelModule", dependencies: ["CoreML", "Tokenizers"]),
        .executableTarget(name: "ModelModuleChat", dependencies: ["ModelModule"]),
        .target(name: "ChatApp", dependencies: ["ModelModule"]),
        .testTarget(
            name: "ModelModuleTests", dependencies: ["ModelModule"],
            exclude: ["macai.macaiadapter"]),
    ]
)
