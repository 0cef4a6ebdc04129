"""Clients that cost a server memory: idle connections, and phones that send a photo each at the same time.

Usage: clients.py HOST PORT DOMAIN USER:PASSWORD IDLE UPLOADS MEGABYTES. Prints a line when the connections are open and
one with the number of uploads that were accepted.
"""

import base64
import http.client
import resource
import socket
import sys
import threading

host, port, domain, account, idle, uploads, megabytes = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
held = [socket.create_connection((host, int(port))) for _ in range(int(idle))]
print(len(held), flush=True)
sys.stdin.readline()

EDGE = "edge"
accepted = []


def upload(number):
    form = (
        '<data xmlns="http://example.org/photo"><meta><instanceID>photo-%d</instanceID></meta></data>' % number
    ).encode()
    photo = bytes([number % 256]) * (int(megabytes) << 20)
    parts = b""
    for name, file, kind, content in [
        ("xml_submission_file", "form.xml", "text/xml", form),
        ("photo", "photo.jpg", "image/jpeg", photo),
    ]:
        parts += (
            '--%s\r\nContent-Disposition: form-data; name="%s"; filename="%s"\r\nContent-Type: %s\r\n\r\n'
            % (EDGE, name, file, kind)
        ).encode() + content + b"\r\n"
    parts += ("--%s--\r\n" % EDGE).encode()
    connection = http.client.HTTPConnection(host, int(port), timeout=120)
    connection.request("POST", "/a/%s/receiver/" % domain, parts, {
        "Content-Type": "multipart/form-data; boundary=" + EDGE,
        "Authorization": "Basic " + base64.b64encode(account.encode()).decode(),
    })
    if connection.getresponse().status == 201:
        accepted.append(number)


threads = [threading.Thread(target=upload, args=(number,)) for number in range(int(uploads))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(accepted), flush=True)
