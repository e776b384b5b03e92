#!/bin/sh
# 1014 (Bad Gateway) is in IANA's registry of WebSocket close codes. tungstenite knows no such code and
# calls it one that is not allowed, beside 1005 and 1006, which are none on the wire.
#
# Prints the version and what was seen; fails where that changes. Needs cargo.
set -eu

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cargo init --quiet --name seen --vcs none
cargo add --quiet tungstenite@=0.30.0 --no-default-features
cat >src/main.rs <<'RUST'
use tungstenite::protocol::frame::coding::CloseCode;

fn main() {
    for code in [1000u16, 1006, 1013, 1014, 3000] {
        println!("{code} {}", CloseCode::from(code).is_allowed());
    }
}
RUST
cargo run --quiet >seen
echo "tungstenite 0.30.0"
cat seen
cat >expected <<'SEEN'
1000 true
1006 false
1013 true
1014 false
3000 true
SEEN
cmp seen expected
