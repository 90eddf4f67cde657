package org.bridgeface.core;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** A strict reader and a writer of JSON: Map, List, String, Double, Boolean and null. No library is needed for it. */
public final class Json {
    private static final int DEEPEST = 32;
    private final String text;
    private int at;

    private Json(String text) {
        this.text = text;
    }

    /** The value that `text` holds; a DemoException saying where it breaks. */
    public static Object parse(String text) throws DemoException {
        Json json = new Json(text);
        Object value = json.value(0);
        json.space();
        if (json.at != text.length()) {
            throw json.broken("the end");
        }
        return value;
    }

    private Object value(int depth) throws DemoException {
        space();
        if (depth > DEEPEST || at >= text.length()) {
            throw broken("a value");
        }
        char c = text.charAt(at);
        if (c == '{') {
            Map<String, Object> map = new LinkedHashMap<String, Object>();
            if (opens('}')) {
                return map;
            }
            do {
                space();
                String key = string();
                take(':');
                map.put(key, value(depth + 1));
            } while (more('}'));
            return map;
        }
        if (c == '[') {
            List<Object> list = new ArrayList<Object>();
            if (opens(']')) {
                return list;
            }
            do {
                list.add(value(depth + 1));
            } while (more(']'));
            return list;
        }
        if (c == '"') {
            return string();
        }
        if (word("true")) {
            return Boolean.TRUE;
        }
        if (word("false")) {
            return Boolean.FALSE;
        }
        return word("null") ? null : number();
    }

    private boolean opens(char closing) {
        at++;
        space();
        if (at < text.length() && text.charAt(at) == closing) {
            at++;
            return true;
        }
        return false;
    }

    private boolean more(char closing) throws DemoException {
        space();
        char c = at < text.length() ? text.charAt(at) : 0;
        if (c != ',' && c != closing) {
            throw broken("',' or '" + closing + "'");
        }
        at++;
        return c == ',';
    }

    private void take(char wanted) throws DemoException {
        space();
        if (at >= text.length() || text.charAt(at) != wanted) {
            throw broken("'" + wanted + "'");
        }
        at++;
    }

    private boolean word(String wanted) {
        boolean found = text.startsWith(wanted, at);
        at += found ? wanted.length() : 0;
        return found;
    }

    private Double number() throws DemoException {
        int from = at;
        while (at < text.length() && "+-.eE0123456789".indexOf(text.charAt(at)) >= 0) {
            at++;
        }
        try {
            double value = Double.parseDouble(text.substring(from, at));
            if (Double.isInfinite(value)) {
                throw broken("a finite number");
            }
            return value;
        } catch (NumberFormatException problem) {
            throw broken("a value");
        }
    }

    private String string() throws DemoException {
        if (at >= text.length() || text.charAt(at) != '"') {
            throw broken("a string");
        }
        StringBuilder out = new StringBuilder();
        for (at++; at < text.length(); at++) {
            char c = text.charAt(at);
            if (c == '"') {
                at++;
                return out.toString();
            }
            out.append(c == '\\' ? escaped() : c);
        }
        throw broken("a closing quote");
    }

    private char escaped() throws DemoException {
        at++;
        char c = at < text.length() ? text.charAt(at) : 0;
        if (c == 'u' && at + 4 < text.length()) {
            try {
                int code = Integer.parseInt(text.substring(at + 1, at + 5), 16);
                at += 4;
                return (char) code;
            } catch (NumberFormatException problem) {
                throw broken("four hexadecimal digits");
            }
        }
        int known = "\"\\/bfnrt".indexOf(c);
        if (c == 0 || known < 0) {
            throw broken("an escape");
        }
        return "\"\\/\b\f\n\r\t".charAt(known);
    }

    private void space() {
        while (at < text.length() && " \t\r\n".indexOf(text.charAt(at)) >= 0) {
            at++;
        }
    }

    private DemoException broken(String wanted) {
        return new DemoException("not JSON: " + wanted + " is missing at character " + at);
    }

    /** Strings, numbers, booleans, null, lists and maps as JSON text. */
    public static String write(Object value) {
        StringBuilder out = new StringBuilder();
        write(value, out);
        return out.toString();
    }

    private static void write(Object value, StringBuilder out) {
        if (value instanceof Map) {
            String separator = "{";
            for (Map.Entry<?, ?> entry : ((Map<?, ?>) value).entrySet()) {
                out.append(separator);
                quote(String.valueOf(entry.getKey()), out);
                out.append(": ");
                write(entry.getValue(), out);
                separator = ", ";
            }
            out.append(separator.equals("{") ? "{}" : "}");
        } else if (value instanceof List) {
            String separator = "[";
            for (Object one : (List<?>) value) {
                out.append(separator);
                write(one, out);
                separator = ", ";
            }
            out.append(separator.equals("[") ? "[]" : "]");
        } else if (value instanceof String) {
            quote((String) value, out);
        } else if (value instanceof Double && (((Double) value).isNaN() || ((Double) value).isInfinite())) {
            throw new IllegalArgumentException("JSON has no word for " + value);
        } else {
            out.append(value);
        }
    }

    private static void quote(String text, StringBuilder out) {
        out.append('"');
        for (char c : text.toCharArray()) {
            if (c == '"' || c == '\\') {
                out.append('\\').append(c);
            } else if (c < ' ') {
                out.append(String.format("\\u%04x", (int) c));
            } else {
                out.append(c);
            }
        }
        out.append('"');
    }
}
