import Dispatch

/// Calls a closure whenever the system runs short of memory, until it is released.
///
/// A dispatch source and not UIKit's notification: it exists on iOS and on the Mac alike.
final class MemoryPressure: @unchecked Sendable {  // the source is only resumed and cancelled
    private let source: any DispatchSourceMemoryPressure

    init(_ react: @escaping @Sendable () -> Void) {
        source = DispatchSource.makeMemoryPressureSource(
            eventMask: [.warning, .critical], queue: .global(qos: .utility))
        source.setEventHandler(handler: react)
        source.activate()
    }

    deinit { source.cancel() }
}
