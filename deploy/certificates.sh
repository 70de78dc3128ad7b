#!/usr/bin/env bash
# Certificates of a cluster: `certificates.sh ca DIR` makes its authority, `certificates.sh node DIR NAME [ADDRESS…]`
# a node's (or the controller's) certificate and key. NAME is the node_id; every address and name by which others
# reach it follows. Keys are mode 0600. DAYS is how long they hold. Only ca.crt and the node's own two files go to a node.
set -euo pipefail
usage="usage: certificates.sh ca DIR | node DIR NAME [ADDRESS...]"
what=${1:?$usage} dir=${2:?$usage}
umask 077
mkdir -p "$dir"

new_key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1"; }

case $what in
  ca)
    [ ! -e "$dir/ca.key" ] || { echo "certificates.sh: $dir/ca.key exists: a new one would disown every node" >&2; exit 1; }
    new_key "$dir/ca.key"
    openssl req -x509 -new -key "$dir/ca.key" -sha256 -days "${DAYS:-3650}" -subj "/CN=medes cluster" \
      -addext basicConstraints=critical,CA:TRUE,pathlen:0 -addext keyUsage=critical,keyCertSign,cRLSign -out "$dir/ca.crt"
    ;;
  node)
    name=${3:?$usage}
    [[ $name =~ ^[A-Za-z0-9._-]+$ ]] || { echo "certificates.sh: $name: letters, digits, . _ - only" >&2; exit 1; }
    names=DNS:$name
    for address in "${@:4}"; do
      if [[ $address =~ ^[0-9.]+$ || $address == *:* ]]; then names+=,IP:$address; else names+=,DNS:$address; fi
    done
    new_key "$dir/$name.key"
    openssl req -new -key "$dir/$name.key" -subj "/CN=$name" |
      openssl x509 -req -CA "$dir/ca.crt" -CAkey "$dir/ca.key" -CAcreateserial -sha256 -days "${DAYS:-365}" \
        -extfile <(printf '%s\n' "subjectAltName=$names" extendedKeyUsage=serverAuth,clientAuth \
          keyUsage=critical,digitalSignature basicConstraints=critical,CA:FALSE) -out "$dir/$name.crt" 2>/dev/null
    ;;
  *) echo "$usage" >&2; exit 1 ;;
esac
