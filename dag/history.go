package dag

import (
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/shell"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Comments of history entries, as BuildKit writes them: for instructions, and for layers no instruction accounts for.
const (
	historyComment  = "buildkit.dockerfile.v0"
	exporterComment = "buildkit.exporter.image.v0"
)

// ranSuffix marks entries of RUN, COPY and ADD.
const ranSuffix = " # buildkit"

// record adds a history entry; step made its layer, None if it has none.
func (l *lowering) record(st *state, createdBy string, step ID) {
	st.history = append(st.history, History{
		History: ocispec.History{
			CreatedBy:  createdBy,
			Comment:    historyComment,
			EmptyLayer: step == None,
			Created:    l.epoch,
		},
		Step: step,
	})
}

// baseHistory takes over the history of a base image, made to fit its layers: an exporter gives layers to entries by counting, so
// that one entry too few or too many would shift all later ones.
func baseHistory(in []ocispec.History, layers int, image ID) []History {
	out := make([]History, 0, len(in))
	left := layers
	for _, h := range in {
		step := None
		if !h.EmptyLayer && left == 0 {
			h.EmptyLayer = true
		}
		if !h.EmptyLayer {
			left--
			step = image
		}
		out = append(out, History{History: h, Step: step})
	}
	for ; left > 0; left-- {
		out = append(out, History{History: ocispec.History{Comment: exporterComment}, Step: image})
	}
	return out
}

// ranWith is the command of a RUN as history shows it: with the build arguments it could see in front.
func ranWith(args []string, declared []buildArg, e shell.EnvGetter) string {
	var order []string
	values := map[string]string{}
	for _, a := range declared {
		v, ok := e.Get(a.key)
		if !ok {
			v = a.value
		}
		if _, seen := values[a.key]; !seen {
			order = append(order, a.key)
		}
		values[a.key] = v
	}
	words := make([]string, 0, len(order)+len(args)+1)
	if len(order) > 0 {
		words = append(words, "|"+strconv.Itoa(len(order)))
	}
	for _, k := range order {
		words = append(words, k+"="+values[k])
	}
	return strings.Join(append(words, args...), " ")
}
