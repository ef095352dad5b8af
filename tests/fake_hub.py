"""A Hugging Face hub of one machine: as much of its protocol as sending and loading a
pipeline takes, over HTTP, so that the real client talks to it.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

TOKEN = "hf_secret"


class FakeHub:
    """Repositories by name, each with its files by name, and what was asked for."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []

        class Handler(Answer):
            hub = self

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def revision(self, name: str) -> str:
        """Changes with the files."""
        told = repr(sorted(self.repos[name].items())).encode()
        return hashlib.sha1(told).hexdigest()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class Answer(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def give(self, content, status: int = 200, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        given = {"Content-Length": str(len(data)), "Content-Type": "application/json"}
        for name, value in {**given, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status: int, code: str = "") -> None:
        self.give({"error": code}, status, X_Error_Code=code, X_Error_Message=code)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path).split("?")[0]
        self.hub.asked.append(f"{self.command} {path}")
        info = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?", path)
        tree = re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+/?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        found = info or tree or file
        if not found or found[1] not in self.hub.repos:
            return self.refuse(404, "RepoNotFound")
        files, sha = self.hub.repos[found[1]], self.hub.revision(found[1])
        if info:
            names = [{"rfilename": name} for name in files]
            return self.give(
                {"id": found[1], "sha": sha, "siblings": names, "private": False}
            )
        if tree:
            entry = lambda name: {
                "type": "file",
                "path": name,
                "size": len(files[name]),
                "oid": hashlib.sha1(files[name]).hexdigest(),
            }
            return self.give([entry(name) for name in files])
        if file[2] not in files:
            return self.refuse(404, "EntryNotFound")
        data = files[file[2]]
        tag = f'"{hashlib.sha1(data).hexdigest()}"'
        self.give(data, ETag=tag, X_Repo_Commit=sha)

    def do_POST(self) -> None:
        data, path = self.body(), unquote(self.path).split("?")[0]
        self.hub.asked.append(f"POST {path}")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.refuse(401)
        if path == "/api/validate-yaml":
            return self.give({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(data)
            name = f"{asked.get('organization') or 'ada'}/{asked['name']}"
            known = name in self.hub.repos
            self.hub.repos.setdefault(name, {})
            url = {"url": f"{self.hub.address}/{name}"}
            return self.give(url, 409 if known else 200)
        name = re.search(r"/(?:api/models/)?([^/]+/[^/]+?)(?:\.git)?/", path)[1]
        if "/preupload/" in path:
            told = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(data)["files"]
            ]
            return self.give({"files": told})
        if "/commit/" in path:
            return self.commit(name, data)
        self.refuse(404, "EntryNotFound")

    def commit(self, name: str, data: bytes) -> None:
        files = self.hub.repos[name]
        for line in data.splitlines():
            step = json.loads(line)
            value = step["value"]
            if step["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            if step["key"] == "deletedFile":
                del files[value["path"]]
        sha = self.hub.revision(name)
        self.give(
            {"commitOid": sha, "commitUrl": f"{self.hub.address}/{name}/commit/{sha}"}
        )
