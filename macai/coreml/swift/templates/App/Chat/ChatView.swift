import ModelModule
import SwiftUI
import UniformTypeIdentifiers

struct ChatView: View {
    let session: ChatSession
    @State private var draft = ""
    @State private var isChoosing = false

    var body: some View {
        NavigationStack {
            VStack(spacing: 0) {
                transcript
                statusLine
                inputLine
            }
            .navigationTitle(Contract.name)
            .toolbar {
                Button("Open", systemImage: "folder") { isChoosing = true }
                Button("New", systemImage: "square.and.pencil") { session.clear() }
            }
            .fileImporter(isPresented: $isChoosing, allowedContentTypes: [.folder]) { result in
                if case .success(let folder) = result {
                    Task { await session.open(folder) }
                }
            }
        }
    }

    private var transcript: some View {
        ScrollView {
            LazyVStack(alignment: .leading, spacing: 12) {
                ForEach(Array(session.messages.enumerated()), id: \.offset) { _, message in
                    MessageView(message: message)
                }
            }
            .padding()
        }
        .defaultScrollAnchor(.bottom)
    }

    @ViewBuilder
    private var statusLine: some View {
        switch session.status {
        case .noModel:
            Text("Open the folder that macai export wrote.").foregroundStyle(.secondary)
        case .loading(let what):
            ProgressView(what)
        case .failed(let reason):
            Text(reason).foregroundStyle(.red)
        case .ready, .replying:
            Text(session.report).font(.caption).foregroundStyle(.secondary)
        }
    }

    private var inputLine: some View {
        HStack {
            TextField("Message", text: $draft, axis: .vertical)
                .textFieldStyle(.roundedBorder)
                .onSubmit { send() }
            if session.status == .replying {
                Button("Stop", systemImage: "stop.circle") { session.stop() }
            } else {
                Button("Send", systemImage: "arrow.up.circle.fill") { send() }
                    .disabled(session.status != .ready || draft.isEmpty)
            }
        }
        .labelStyle(.iconOnly)
        .padding()
    }

    private func send() {
        guard session.status == .ready else { return }
        session.send(draft)
        draft = ""
    }
}

private struct MessageView: View {
    let message: Message

    var body: some View {
        Text(message.content.isEmpty ? "…" : message.content)
            .textSelection(.enabled)
            .padding(10)
            .background(.quaternary, in: .rect(cornerRadius: 12))
            .frame(maxWidth: .infinity, alignment: message.role == .user ? .trailing : .leading)
    }
}
