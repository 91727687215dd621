package dag

import (
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"build/parser"
)

// thousandLines is a Dockerfile of 1,000 lines as people write them: thirty-odd stages that stand on and copy from each
// other, with continued and here-document RUNs, variables and configuration.
func thousandLines() string {
	var b strings.Builder
	b.WriteString("# syntax=docker/dockerfile:1\nARG BASE=base\nARG VERSION=1.2.3\n")
	lines := func() int { return strings.Count(b.String(), "\n") }
	for i := 0; lines() < 970; i++ {
		from := "${BASE}:${VERSION%%.*}"
		if i > 0 && i%2 == 0 {
			from = fmt.Sprintf("s%d", i-1)
		}
		fmt.Fprintf(&b, "\nFROM --platform=$BUILDPLATFORM %s AS s%d\n", from, i)
		b.WriteString(`# what the stage is for
ARG VERSION
ARG TARGETARCH
ENV LANG=C.UTF-8 \
    APP_HOME=/srv/app \
    APP_VERSION=${VERSION:-unknown}
WORKDIR $APP_HOME/src
LABEL org.opencontainers.image.version="$VERSION"
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked --mount=type=tmpfs,target=/tmp \
    apt-get update && \
    apt-get install -y --no-install-recommends \
      ca-certificates \
      # a comment in between
      curl \
      git && \
    rm -rf /var/lib/apt/lists/*
COPY --chown=1000:1000 go.mod go.sum ./
COPY --exclude=*.md . .
RUN <<EOF
set -e
make ARCH=$TARGETARCH
make install
EOF
`)
		if i > 0 {
			fmt.Fprintf(&b, "COPY --from=s%d --link /srv/app/out /usr/local/share/\n", i-1)
		}
		b.WriteString("EXPOSE 8080 9000-9002/udp\nUSER app\nHEALTHCHECK --interval=30s CMD [\"curl\", \"-f\", \"http://localhost\"]\nENTRYPOINT [\"/entry\"]\nCMD [\"serve\"]\n")
	}
	for lines() < 1000 {
		b.WriteString("LABEL filler=1\n")
	}
	return b.String()
}

// From bytes to a graph, with lint, of a Dockerfile of 1,000 lines: to stay under 20 ms.
func BenchmarkThousandLines(b *testing.B) {
	src := []byte(thousandLines())
	o := amd64()
	warnings := 0
	for b.Loop() {
		f, err := parser.Parse("Dockerfile", src, parser.Options{Warn: func(parser.Warning) { warnings++ }})
		if err != nil {
			b.Fatal(err)
		}
		have := map[NeedKey]Resolved{}
		for {
			g, needs, err := Lower(f, o, have)
			if err != nil {
				b.Fatal(err)
			}
			if g != nil && len(needs) == 0 {
				warnings += len(g.Warnings)
				break
			}
			for _, n := range needs {
				have[n.Key()] = Resolved{Image: &ImageInfo{Ref: n.Name, Digest: digest.FromString(n.Name), Config: []byte(baseConfig)}}
			}
		}
	}
	b.ReportMetric(float64(warnings)/float64(b.N), "warnings/op")
}

// What the benchmark measures is a graph of some size.
func TestThousandLines(t *testing.T) {
	src := thousandLines()
	if n := strings.Count(src, "\n"); n < 1000 || n > 1010 {
		t.Errorf("it has %d lines", n)
	}
	g, _, err := lowerAll(mustParse(t, src), amd64(), nil)
	if err != nil {
		t.Fatal(err)
	}
	checkGraph(t, g, []byte(src))
	if len(g.Steps) < 100 {
		t.Errorf("only %d steps", len(g.Steps))
	}
}
