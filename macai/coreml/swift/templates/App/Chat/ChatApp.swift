import SwiftUI

@main
struct ChatApp: App {
    @State private var session = ChatSession()

    var body: some Scene {
        WindowGroup {
            ChatView(session: session)
                .task { await session.openBundledModel() }
        }
    }
}
