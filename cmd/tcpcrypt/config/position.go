package config

import (
	"bytes"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// lines finds the line of each key and array element of a TOML document that parses,
// by paths such as "outbound[0].ports[1]".
func lines(data []byte) map[string]int {
	p := new(unstable.Parser)
	p.Reset(data)
	f := finder{p: p, data: data, at: make(map[string]int), tables: make(map[string]int)}
	prefix := ""
	for p.NextExpression() {
		e := p.Expression()
		switch e.Kind {
		case unstable.ArrayTable:
			prefix = f.key("", e, true)
		case unstable.Table:
			prefix = f.key("", e, false)
		case unstable.KeyValue:
			f.keyValue(prefix, e)
		default:
		}
	}
	return f.at
}

type finder struct {
	p      *unstable.Parser
	data   []byte
	at     map[string]int
	tables map[string]int // of each array of tables, how many there were
}

// key records the keys of e below prefix and returns the path of the last.
func (f *finder) key(prefix string, e *unstable.Node, array bool) string {
	path := prefix
	for it := e.Key(); it.Next(); {
		n := it.Node()
		path = join(path, string(n.Data))
		f.record(path, n.Raw)
		if it.IsLast() && array {
			f.tables[path]++
		}
		if count := f.tables[path]; count > 0 {
			path += "[" + strconv.Itoa(count-1) + "]"
			f.record(path, n.Raw)
		}
	}
	return path
}

func (f *finder) keyValue(prefix string, e *unstable.Node) {
	f.value(f.key(prefix, e, false), e.Value())
}

func (f *finder) value(path string, v *unstable.Node) {
	switch v.Kind {
	case unstable.Array:
		i := 0
		for it := v.Children(); it.Next(); {
			n := it.Node()
			if n.Kind == unstable.Comment {
				continue
			}
			element := path + "[" + strconv.Itoa(i) + "]"
			if n.Raw.Length > 0 {
				f.record(element, n.Raw)
			} else if l := f.at[path]; l > 0 {
				f.at[element] = l
			}
			f.value(element, n)
			i++
		}
	case unstable.InlineTable:
		for it := v.Children(); it.Next(); {
			if n := it.Node(); n.Kind == unstable.KeyValue {
				f.keyValue(path, n)
			}
		}
	default:
	}
}

// record keeps the first line that was seen for path.
func (f *finder) record(path string, r unstable.Range) {
	if _, seen := f.at[path]; !seen {
		f.at[path] = 1 + bytes.Count(f.data[:r.Offset], []byte("\n"))
	}
}

func join(prefix, key string) string {
	if strings.ContainsAny(key, " .\"[]\t") || key == "" {
		key = strconv.Quote(key)
	}
	if prefix == "" {
		return key
	}
	return prefix + "." + key
}
