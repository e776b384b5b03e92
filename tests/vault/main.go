// The real Vault that the tests run against, built from the published module of
// a pinned version where the release archive cannot be downloaded.
package main

import (
	"os"

	"github.com/hashicorp/vault/command"
)

func main() {
	os.Exit(command.Run(os.Args[1:]))
}
