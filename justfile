# One name for each habit; every recipe is a plain command.

# Check this machine.
check *arguments:
    .ci/check-this-machine {{arguments}}

# Pass all tests.
test:
    .ci/test

# Measure the speed of dhc itself.
bench:
    cargo build --release --package dhc-runners
    cargo bench --package dhc-benches

# Write generated files again: schemas and the README's table of checks. Read the difference before committing it.
golden:
    DHC_GOLDEN=write cargo test --package dhc-runners --test golden

# Build dhc without any need of the host's libraries, and print where it is.
static:
    .ci/setup static
    runners/deploy/static/build

# Build the Debian package in target/debian.
deb:
    runners/deploy/debian/build
