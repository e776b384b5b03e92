#!/bin/sh
# Has this machine trust the gateway's CA, and undoes that:
#
#   curl -fsS http://@GATEWAY@/install.sh | sh
#   curl -fsS http://@GATEWAY@/install.sh | sh -s -- --undo
#
# As root it installs the CA for the system, otherwise for the user alone (--home has root do the same).
# Running it again changes nothing more.
set -eu
umask 022

gateway='@GATEWAY@'
fingerprint='@FINGERPRINT@'
begin='# >>> cloakroom >>>'
end='# <<< cloakroom <<<'

ca() {
	cat <<'CA'
@CA@
CA
}

say() {
	printf '%s\n' "cloakroom: $*"
}

fail() {
	printf '%s\n' "cloakroom: $*" >&2
	exit 1
}

usage() {
	# shellcheck disable=SC2016 # It is for the reader.
	printf '%s\n' 'usage: install.sh [--home] [--undo]' \
		'  --home  for this user alone, below $HOME, also as root' \
		'  --undo  remove what an earlier run has made'
}

# Where the system keeps the CAs that its administrator adds, the command that takes them, and the
# bundle that it makes of all.
find_store() {
	anchor='' take='' retake='' store=''
	if [ "$(uname -s)" = Darwin ]; then
		anchor=/Library/cloakroom-ca.pem
	elif [ -d /etc/pki/trust/anchors ] && has update-ca-certificates; then
		# openSUSE
		anchor=/etc/pki/trust/anchors/cloakroom.pem store=/etc/ssl/ca-bundle.pem
		take=update-ca-certificates retake='update-ca-certificates --fresh'
	elif [ -d /etc/pki/ca-trust/source/anchors ] && has update-ca-trust; then
		# Fedora, RHEL
		anchor=/etc/pki/ca-trust/source/anchors/cloakroom.pem store=/etc/pki/tls/certs/ca-bundle.crt
		take='update-ca-trust extract' retake=$take
	elif [ -d /etc/ca-certificates/trust-source/anchors ] && has update-ca-trust; then
		# Arch
		anchor=/etc/ca-certificates/trust-source/anchors/cloakroom.pem
		store=/etc/ssl/certs/ca-certificates.crt
		take='update-ca-trust extract' retake=$take
	elif has update-ca-certificates; then
		# Debian, Ubuntu, Alpine
		anchor=/usr/local/share/ca-certificates/cloakroom.crt store=/etc/ssl/certs/ca-certificates.crt
		take=update-ca-certificates retake='update-ca-certificates --fresh'
	fi
}

has() {
	command -v "$1" >/dev/null 2>&1
}

# The system's own CAs, wherever it has them.
find_bundle() {
	for bundle in /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt \
		/etc/ssl/ca-bundle.pem /etc/ssl/cert.pem; do
		if [ -s "$bundle" ]; then
			return 0
		fi
	done
	bundle=''
	return 1
}

# Writes what it reads to a file, whole or not at all, and only where it is not there already.
write() {
	cat >"$1.new"
	if [ -f "$1" ] && cmp -s "$1.new" "$1"; then
		rm -f "$1.new"
	else
		mv -f "$1.new" "$1"
		say "wrote $1"
	fi
}

fetch_bundle() {
	if has curl; then
		curl -fsS "http://$gateway/bundle.pem"
	elif has wget; then
		wget -qO- "http://$gateway/bundle.pem"
	else
		return 1
	fi
}

# A bundle of the system's CAs and the gateway's, for programs that take no other CAs than those of one
# file. The public CAs come from this machine where it has any.
make_bundle() {
	if find_bundle; then
		{
			ca
			cat "$bundle"
		} | write "$dir/bundle.pem"
	else
		fetch_bundle >"$dir/fetched.pem" || fail "this machine has no CAs, and http://$gateway/bundle.pem \
cannot be fetched: install curl, wget or ca-certificates"
		write "$dir/bundle.pem" <"$dir/fetched.pem"
		rm -f "$dir/fetched.pem"
		say "this machine has no CAs of its own: the public ones were fetched from the gateway"
	fi
}

# The variables that programs read. SSL_CERT_FILE and those after it replace all CAs, so they name a file
# with the public ones; Node adds what it is given to its own.
variables() {
	for name in SSL_CERT_FILE REQUESTS_CA_BUNDLE CURL_CA_BUNDLE GIT_SSL_CAINFO; do
		printf '%s\n' "$1$name=$2$3$2"
	done
	printf '%s\n' "$1NODE_EXTRA_CA_CERTS=$2$4$2"
	if [ "$5" = system ]; then
		printf '%s\n' "$1NODE_USE_SYSTEM_CA=1"
	fi
}

# Puts what it reads into a file between two lines, in place of what stood there. A file that this makes is
# marked so, to be removed with the last of it.
put() {
	made=''
	if [ ! -e "$1" ] || grep -qxF "$begin made" "$1"; then
		made=' made'
	fi
	{
		without "$1"
		printf '%s\n' "$begin$made"
		cat
		printf '%s\n' "$end"
	} >"$1.new"
	# Its owner and its permissions stay.
	if [ -f "$1" ] && cmp -s "$1.new" "$1"; then
		rm -f "$1.new"
		return
	fi
	cat "$1.new" >"$1"
	rm -f "$1.new"
	say "wrote to $1"
}

# Prints a file without those lines.
without() {
	if [ -f "$1" ]; then
		sed "/^$begin/,/^$end/d" "$1"
	fi
}

take_out() {
	if [ ! -f "$1" ] || ! grep -q "^$begin" "$1"; then
		return 0
	fi
	without "$1" >"$1.new"
	if grep -qxF "$begin made" "$1" && [ ! -s "$1.new" ]; then
		rm -f "$1"
	else
		cat "$1.new" >"$1"
	fi
	rm -f "$1.new"
	say "took out of $1 what was put there"
}

remove() {
	for file; do
		if [ -e "$file" ]; then
			rm -f "$file"
			say "removed $file"
		fi
	done
}

install_system() {
	find_store
	dir=/usr/local/share/cloakroom
	mkdir -p "$dir"
	ca | write "$dir/ca.pem"
	if [ -n "$anchor" ] && [ -z "$take" ]; then
		ca | write "$anchor"
		security add-trusted-cert -d -r trustRoot -k /Library/Keychains/System.keychain "$anchor"
	elif [ -n "$anchor" ]; then
		ca | write "$anchor"
		$take >/dev/null 2>&1 || fail "$take failed"
	else
		say 'this system has no store of CAs that is known here: only the variables are set'
	fi
	if [ -n "$store" ] && [ -s "$store" ]; then
		remove "$dir/bundle.pem"
	else
		make_bundle
		store=$dir/bundle.pem
	fi
	variables 'export ' "'" "$store" "$dir/ca.pem" system | write "$dir/env"
	if [ -d /etc/profile.d ]; then
		printf '%s\n' ". $dir/env" | write /etc/profile.d/cloakroom.sh
	elif [ -f /etc/profile ]; then
		printf '%s\n' ". $dir/env" | put /etc/profile
	fi
	if [ -f /etc/environment ]; then
		variables '' '' "$store" "$dir/ca.pem" system | put /etc/environment
	fi
	if [ -f /etc/zprofile ]; then
		printf '%s\n' ". $dir/env" | put /etc/zprofile
	fi
}

undo_system() {
	find_store
	dir=/usr/local/share/cloakroom
	for file in /etc/profile /etc/environment /etc/zprofile; do
		take_out "$file"
	done
	if [ -n "$anchor" ] && [ -e "$anchor" ]; then
		if [ -z "$retake" ]; then
			security remove-trusted-cert -d "$anchor" || say 'the keychain did not have it'
		fi
		remove "$anchor"
		$retake >/dev/null 2>&1 || fail "$retake failed"
	fi
	remove /etc/profile.d/cloakroom.sh "$dir/env" "$dir/bundle.pem" "$dir/ca.pem"
	if [ -d "$dir" ]; then
		rmdir "$dir"
	fi
}

install_home() {
	dir=$HOME/.config/cloakroom
	if [ ! -d "$HOME/.config" ]; then
		mkdir "$HOME/.config"
		mkdir "$dir"
		: >"$dir/made-config"
	fi
	mkdir -p "$dir"
	ca | write "$dir/ca.pem"
	make_bundle
	# shellcheck disable=SC2016 # Whoever reads the file has a home.
	variables 'export ' '"' '$HOME/.config/cloakroom/bundle.pem' '$HOME/.config/cloakroom/ca.pem' home |
		write "$dir/env"
	for file in .profile .bashrc .bash_profile .zprofile .zshrc; do
		# The first is every shell's; the others stand in its place where they are.
		if [ "$file" = .profile ] || [ -f "$HOME/$file" ]; then
			# shellcheck disable=SC2016
			printf '%s\n' '. "$HOME/.config/cloakroom/env"' | put "$HOME/$file"
		fi
	done
	say "$dir/bundle.pem is a copy of today's public CAs: run this again after they have changed"
}

undo_home() {
	dir=$HOME/.config/cloakroom
	for file in .profile .bashrc .bash_profile .zprofile .zshrc; do
		take_out "$HOME/$file"
	done
	remove "$dir/env" "$dir/bundle.pem" "$dir/ca.pem"
	if [ -e "$dir/made-config" ]; then
		rm -f "$dir/made-config"
		rmdir "$dir"
		rmdir "$HOME/.config" 2>/dev/null || :
	elif [ -d "$dir" ]; then
		rmdir "$dir"
	fi
}

main() {
	for_whom=home what=install
	if [ "$(id -u)" = 0 ]; then
		for_whom=system
	fi
	for argument; do
		case $argument in
		--home) for_whom=home ;;
		--undo) what=undo ;;
		--help)
			usage
			exit 0
			;;
		*)
			usage >&2
			exit 64
			;;
		esac
	done
	if [ "$for_whom" = home ] && [ ! -d "${HOME:-}" ]; then
		fail 'HOME is no folder'
	fi
	"${what}_$for_whom"
	if [ "$what" = undo ]; then
		say 'undone; shells that are open keep their variables until they end'
		exit 0
	fi
	say "the CA is installed. SHA-256 of its certificate:"
	say "  $fingerprint"
	say "It came over plain HTTP, so it is as trustworthy as the network between here and $gateway:"
	say "compare it with what the gateway's operator says."
	say "New login shells have the variables; this one after:  . $dir/env"
	say "To undo:  curl -fsS http://$gateway/install.sh | sh -s -- --undo"
}

# Last, so that a script which arrived in part does nothing.
main "$@"
