"""Makes the sites that package managers ask, as files for the lab's origins: one package each.

    sites.py FOLDER

FOLDER/www/HOST/PATH is what HOST answers at PATH, and FOLDER/git holds the repositories of github.com. A
file PATH.head beside it has the fields of its answer, and a status.
"""

import base64
import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile

FOLDER = sys.argv[1]
TEXT = b"a coat that is larger than it looks"


def put(host, path, content, **head):
    """Writes what a host answers at a path, with the fields of its head."""
    if not isinstance(content, (bytes, str)):
        content = json.dumps(content)
    if isinstance(content, str):
        content = content.encode()
    name = os.path.join(FOLDER, "www", host, path)
    os.makedirs(os.path.dirname(name), exist_ok=True)
    with open(name, "wb") as file:
        file.write(content)
    if head:
        with open(name + ".head", "w") as file:
            for field, value in head.items():
                file.write(f"{field.replace('_', '-')}: {value}\n")
    return content


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def zipped(files):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


def tarred(files):
    data = io.BytesIO()
    with gzip.GzipFile(fileobj=data, mode="wb", mtime=0) as packed:
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(content), 0o644
                archive.addfile(entry, io.BytesIO(content))
    return data.getvalue()


def pypi():
    """The simple index (PEP 503), with metadata beside the wheel (PEP 658)."""
    metadata = b"Metadata-Version: 2.1\nName: coat\nVersion: 1.0\n"
    wheel = b"Wheel-Version: 1.0\nGenerator: lab\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files = {
        "coat.py": b"text = 'a coat'\n",
        "coat-1.0.dist-info/METADATA": metadata,
        "coat-1.0.dist-info/WHEEL": wheel,
    }

    def line(name, content):
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        return f"{name},sha256={digest},{len(content)}\n"

    record = "".join(line(*file) for file in files.items()) + "coat-1.0.dist-info/RECORD,,\n"
    archive = zipped({**files, "coat-1.0.dist-info/RECORD": record.encode()})
    name = "coat-1.0-py3-none-any.whl"
    files, path = "files.pythonhosted.org", f"packages/c0/a7/{name}"
    put(files, path, archive)
    put(files, path + ".metadata", metadata)
    put(
        "pypi.org",
        "simple/coat/index.html",
        f'<!DOCTYPE html><html><body><a href="https://{files}/{path}#sha256={sha256(archive)}" '
        f'data-core-metadata="sha256={sha256(metadata)}">{name}</a></body></html>',
        content_type="text/html",
    )


def npm(host):
    """A package's document and its archive, as npm's registry and Yarn's have them."""
    about = {"name": "coat", "version": "1.0.0", "main": "index.js"}
    archive = tarred(
        {
            "package/package.json": json.dumps(about).encode(),
            "package/index.js": b"module.exports = 'a coat'\n",
        }
    )
    integrity = base64.b64encode(hashlib.sha512(archive).digest()).decode()
    path = "coat/-/coat-1.0.0.tgz"
    put(host, path, archive)
    version = dict(
        about,
        dist={
            "tarball": f"https://{host}/{path}",
            "shasum": hashlib.sha1(archive).hexdigest(),
            "integrity": f"sha512-{integrity}",
        },
    )
    day = "2020-01-01T00:00:00.000Z"
    document = {
        "name": "coat",
        "dist-tags": {"latest": "1.0.0"},
        "versions": {"1.0.0": version},
        "time": {"created": day, "modified": day, "1.0.0": day},
    }
    put(host, "coat/index.json", document, content_type="application/json")
    put(host, "-/npm/v1/security/advisories/bulk", "{}", content_type="application/json")


def debian(host, folder, suite):
    """A repository with one package, named after the suite, and without a signature."""
    name = f"coat-{suite}"
    work = os.path.join(FOLDER, "deb", name)
    os.makedirs(os.path.join(work, "DEBIAN"))
    with open(os.path.join(work, "DEBIAN", "control"), "w") as control:
        control.write(
            f"Package: {name}\nVersion: 1.0\nArchitecture: all\nMaintainer: lab <lab@example.com>\n"
            "Description: a coat\n"
        )
    built = work + ".deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "--build", work, built], check=True, stdout=subprocess.DEVNULL
    )
    with open(built, "rb") as file:
        deb = file.read()
    path = f"pool/main/c/{name}_1.0_all.deb"
    put(host, f"{folder}/{path}", deb)
    packages = (
        f"Package: {name}\nVersion: 1.0\nArchitecture: all\nMaintainer: lab <lab@example.com>\n"
        f"Filename: {path}\nSize: {len(deb)}\nSHA256: {sha256(deb)}\nDescription: a coat\n\n"
    ).encode()
    own = subprocess.run(["dpkg", "--print-architecture"], check=True, capture_output=True, text=True)
    lists = [f"main/binary-{architecture}/Packages" for architecture in {own.stdout.strip(), "all"}]
    sums = "".join(f" {sha256(packages)} {len(packages)} {name}\n" for name in lists)
    for name in lists:
        put(host, f"{folder}/dists/{suite}/{name}", packages)
    put(
        host,
        f"{folder}/dists/{suite}/Release",
        f"Origin: lab\nLabel: lab\nSuite: {suite}\nCodename: {suite}\n"
        f"Date: Wed, 01 Jan 2020 00:00:00 UTC\nArchitectures: {own.stdout.strip()} all\n"
        f"Components: main\nSHA256:\n{sums}",
    )


def crates():
    """A sparse index with one crate."""
    manifest = b'[package]\nname = "coat"\nversion = "1.0.0"\nedition = "2021"\n'
    crate = tarred({"coat-1.0.0/Cargo.toml": manifest, "coat-1.0.0/src/lib.rs": b"pub struct Coat;\n"})
    put("index.crates.io", "config.json", {"dl": "https://static.crates.io/crates", "api": "https://crates.io"})
    entry = {"name": "coat", "vers": "1.0.0", "deps": [], "cksum": sha256(crate), "features": {}, "yanked": False}
    put("index.crates.io", "co/at/coat", json.dumps(entry) + "\n")
    put("static.crates.io", "crates/coat/1.0.0/download", crate)


def go():
    """A proxy with one module, and the database of checksums, a tree of one leaf with a key of its own."""
    module, version = "lab.example/coat", "v1.0.0"
    about = f"module {module}\n\ngo 1.20\n".encode()
    files = {f"{module}@{version}/go.mod": about, f"{module}@{version}/coat.go": b"package coat\n"}
    host, at = "proxy.golang.org", f"{module}/@v/"
    info = {"Version": version, "Time": "2020-01-01T00:00:00Z"}
    put(host, at + "list", version + "\n")
    put(host, at + f"{version}.info", info)
    put(host, f"{module}/@latest", info)
    put(host, at + f"{version}.mod", about)
    put(host, at + f"{version}.zip", zipped(files))

    def hash1(files):
        lines = "".join(f"{sha256(content)}  {name}\n" for name, content in sorted(files.items()))
        return "h1:" + base64.b64encode(hashlib.sha256(lines.encode()).digest()).decode()

    record = f"{module} {version} {hash1(files)}\n{module} {version}/go.mod {hash1({'go.mod': about})}\n"
    leaf = hashlib.sha256(b"\0" + record.encode()).digest()
    tree = f"go.sum database tree\n1\n{base64.b64encode(leaf).decode()}\n"
    name, key = "sum.golang.org", os.path.join(FOLDER, "sumdb.pem")
    openssl = ["openssl", "genpkey", "-algorithm", "ed25519", "-out", key]
    subprocess.run(openssl, check=True)
    public = subprocess.run(
        ["openssl", "pkey", "-in", key, "-pubout", "-outform", "DER"], check=True, capture_output=True
    )
    verifier = b"\x01" + public.stdout[-32:]
    number = hashlib.sha256(name.encode() + b"\n" + verifier).digest()[:4]
    unsigned = os.path.join(FOLDER, "sumdb.tree")
    with open(unsigned, "w") as file:
        file.write(tree)
    openssl = ["openssl", "pkeyutl", "-sign", "-inkey", key, "-rawin", "-in", unsigned]
    signature = subprocess.run(openssl, check=True, capture_output=True).stdout
    signed = f"{tree}\n\N{EM DASH} {name} {base64.b64encode(number + signature).decode()}\n"
    put(name, f"lookup/{module}@{version}", f"0\n{record}\n{signed}")
    put(name, "tile/8/0/000.p/1", leaf)
    put(name, "latest", signed)
    with open(os.path.join(FOLDER, "sumdb.key"), "w") as file:
        file.write(f"{name}+{number.hex()}+{base64.b64encode(verifier).decode()}")


def github():
    """Two repositories, one of them with a file in git-lfs, which another host stores."""
    oid, size = sha256(TEXT), len(TEXT)
    store = "github-cloud.githubusercontent.com"
    href = f"https://{store}/alambic/media/1/{oid}"
    put(store, f"alambic/media/1/{oid}", TEXT)
    download = {"href": href, "expires_in": 300}
    batch = {"transfer": "basic", "objects": [{"oid": oid, "size": size, "actions": {"download": download}}]}
    put(
        "github.com",
        "lab/coat.git/info/lfs/objects/batch",
        batch,
        content_type="application/vnd.git-lfs+json",
    )
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n"
    repository("coat", {".gitattributes": "large filter=lfs diff=lfs merge=lfs -text\n", "large": pointer})
    repository("plain", {"README": "a coat\n"})


def repository(name, files):
    bare, work = (os.path.join(FOLDER, "git", "lab", name + end) for end in (".git", ".work"))
    os.makedirs(work)
    for path, content in files.items():
        with open(os.path.join(work, path), "w") as file:
            file.write(content)

    def git(*arguments):
        own = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
        subprocess.run(["git", "-C", work, *arguments], check=True, env={**os.environ, **own})

    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", bare], check=True)
    git("init", "-q", "-b", "main")
    git("add", ".")
    git("-c", "user.name=lab", "-c", "user.email=lab@example.com", "commit", "-q", "-m", "one")
    git("push", "-q", bare, "main")


def docker():
    """An image of one layer; the registry wants a token of another host, and a third has the blobs."""
    registry, store = "registry-1.docker.io", "production.cloudflare.docker.com"
    layer = tarred({"coat": TEXT})
    with gzip.GzipFile(fileobj=io.BytesIO(layer)) as packed:
        plain = sha256(packed.read())
    config = {"architecture": "amd64", "os": "linux", "config": {}}
    config["rootfs"] = {"type": "layers", "diff_ids": [f"sha256:{plain}"]}
    config = json.dumps(config).encode()

    def blob(kind, content):
        digest = sha256(content)
        path = f"registry-v2/docker/registry/v2/blobs/sha256/{digest[:2]}/{digest}/data"
        put(store, path, content)
        put(
            registry,
            f"v2/library/coat/blobs/sha256:{digest}",
            "",
            status=307,
            location=f"https://{store}/{path}",
        )
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(content)}

    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob("application/vnd.oci.image.config.v1+json", config),
        "layers": [blob("application/vnd.oci.image.layer.v1.tar+gzip", layer)],
    }
    put(registry, "v2/library/coat/manifests/latest", manifest, content_type=manifest["mediaType"])
    put(registry, "v2/index.json", "{}", content_type="application/json")
    realm = 'Bearer realm="https://auth.docker.io/token",service="registry.docker.io"'
    put(registry, ".unauthorized", realm)
    token = {"token": "anonymous", "access_token": "anonymous", "expires_in": 300}
    put("auth.docker.io", "token", token, content_type="application/json")


pypi()
npm("registry.npmjs.org")
npm("registry.yarnpkg.com")
debian("deb.debian.org", "debian", "bookworm")
debian("security.debian.org", "debian-security", "bookworm-security")
crates()
go()
github()
docker()
