package build

import (
	"strings"

	"build/internal/userns"
)

// ParseIsolation reads the value of --isolation: a word for the sandbox or the root, and after commas ids= and proc=. The words are
// ours and those of other builders' users: default and auto choose, oci and rootless mean namespaces.
func ParseIsolation(s string) (Isolation, error) {
	var i Isolation
	for part := range strings.SplitSeq(s, ",") {
		key, value, ok := strings.Cut(part, "=")
		if !ok {
			key, value = "", part
		}
		if !i.set(key, value) {
			return Isolation{}, &UsageError{
				Msg:  "invalid --isolation " + s + ": " + part,
				Hint: "auto, overlay, tree, chroot or none; with ,ids=host|range|single and ,proc=fresh|bound",
			}
		}
	}
	return i, nil
}

func (i *Isolation) set(key, value string) bool {
	switch key + "=" + value {
	case "=", "=auto", "=default":
	case "=namespaces", "=oci", "=rootless":
		i.Sandbox = SandboxNamespaces
	case "=overlay":
		i.Sandbox, i.Root = SandboxNamespaces, RootOverlay
	case "=tree":
		i.Sandbox, i.Root = SandboxNamespaces, RootTree
	case "=chroot":
		i.Sandbox = SandboxChroot
	case "=none":
		i.Sandbox = SandboxNone
	case "ids=host", "ids=range", "ids=single":
		i.IDs = userns.IDs(value)
	case "proc=fresh":
		i.Proc = ProcFresh
	case "proc=bound":
		i.Proc = ProcBound
	default:
		return false
	}
	return true
}
