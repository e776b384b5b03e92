//go:build pinned

// Package pinned names what go.mod and go.sum pin.
package pinned

import _ "github.com/summerwind/h2spec/cmd/h2spec"
