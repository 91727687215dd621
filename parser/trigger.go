package parser

import (
	"errors"
	"fmt"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	bkparser "github.com/moby/buildkit/frontend/dockerfile/parser"
)

// ParseTrigger reads one instruction that ONBUILD of a base left behind. Its place is at, the FROM of that base: the text itself
// stands in no file.
func ParseTrigger(text string, at Range) (instructions.Command, error) {
	result, err := bkparser.Parse(strings.NewReader(text))
	if err != nil {
		return nil, withoutLines(err)
	}
	if len(result.AST.Children) != 1 {
		return nil, errors.New("onbuild trigger should be a single expression")
	}
	node := result.AST.Children[0]
	node.StartLine, node.EndLine = at.Start.Line, at.End.Line
	parsed, err := instructions.ParseInstructionWithLinter(node, linter.New(&linter.Config{}))
	if err != nil {
		return nil, withoutLines(err)
	}
	cmd, ok := parsed.(instructions.Command)
	if !ok {
		return nil, fmt.Errorf("%s isn't allowed as an ONBUILD trigger", strings.ToUpper(node.Value))
	}
	return cmd, nil
}

// withoutLines drops places that count the lines of a trigger's text.
func withoutLines(err error) error {
	var le *bkparser.LocationError
	if errors.As(err, &le) {
		return le.Unwrap()
	}
	return err
}

// IsHeredoc tells whether a word introduces a here-document and nothing else.
func IsHeredoc(word string) bool { return bkparser.MustParseHeredoc(word) != nil }

// StripTabs takes the leading tabs off the lines of a here-document, as <<- asks for.
func StripTabs(text string) string { return bkparser.ChompHeredocContent(text) }
