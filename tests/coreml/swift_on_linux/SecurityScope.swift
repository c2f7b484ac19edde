// What the app uses of Apple's Foundation that Linux does not have.

import Foundation

extension URL {
    func startAccessingSecurityScopedResource() -> Bool { true }
}
