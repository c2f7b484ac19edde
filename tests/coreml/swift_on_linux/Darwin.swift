// What the package uses of Apple's Foundation and Dispatch that Linux does not have.

import Dispatch
import Foundation

func autoreleasepool<R>(invoking body: () throws -> R) rethrows -> R { try body() }

typealias DispatchSourceMemoryPressure = DispatchSourceUserDataAdd

struct MemoryPressureEvent: OptionSet {
    let rawValue: UInt
    static let warning = MemoryPressureEvent(rawValue: 1)
    static let critical = MemoryPressureEvent(rawValue: 2)
}

extension DispatchSource {
    static func makeMemoryPressureSource(
        eventMask: MemoryPressureEvent, queue: DispatchQueue?
    ) -> any DispatchSourceMemoryPressure {
        makeUserDataAddSource(queue: queue)
    }
}

extension URL {
    static var cachesDirectory: URL { FileManager.default.temporaryDirectory }
}

final class DispatchSerialQueue: SerialExecutor {
    private let queue: DispatchQueue

    init(label: String) { queue = DispatchQueue(label: label) }

    func enqueue(_ job: consuming ExecutorJob) {
        let job = UnownedJob(job)
        queue.async { job.runSynchronously(on: self.asUnownedSerialExecutor()) }
    }

    func asUnownedSerialExecutor() -> UnownedSerialExecutor { UnownedSerialExecutor(ordinary: self) }
}
