#!/usr/bin/env bash
# Copy this machine's psql, pg_dump and pg_restore to a folder that works on another Debian of the same release: each
# with the libraries that it was built with. infra/Dockerfile runs it in PostgreSQL's own image.
set -euo pipefail
target=$1
mkdir -p "$target/bin" "$target/lib" "$target/programs"
for name in psql pg_dump pg_restore; do
    program=$(find /usr/lib/postgresql -path "*/bin/$name")
    cp "$program" "$target/programs/"
    # Not the C library: it belongs to the machine.
    ldd "$program" | awk '$3 ~ "^/" && $1 !~ "^lib(c|m|dl|rt|pthread)[.]so" {print $3}' | xargs -I {} cp {} "$target/lib/"
    cat >"$target/bin/$name" <<END
#!/bin/sh
LD_LIBRARY_PATH=$target/lib exec $target/programs/$name "\$@"
END
    chmod 0755 "$target/bin/$name"
done
