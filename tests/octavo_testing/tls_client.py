"""A TLS client that sends the beginning of its request together with the end of its handshake."""

from __future__ import annotations

import socket
import ssl


def hurry(port: int, context: ssl.SSLContext, sent: bytes, *, server_name: str | None = None) -> bytes:
    """What it is answered until the other side ends TLS; `sent` goes in one segment with the handshake's last message."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=server_name)
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                client.sendall(outgoing.read())
                incoming.write(client.recv(65536))
        if sent:
            tls.write(sent)
        client.sendall(outgoing.read())
        answer = b""
        while data := client.recv(65536):
            incoming.write(data)
            try:
                while part := tls.read():
                    answer += part
                break
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLZeroReturnError:
                break
        return answer
