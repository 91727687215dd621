package com.example;

import java.io.InputStream;
import java.util.Properties;

public class Clock {
    record Part(String name, int seconds) {}

    public static void main(String[] args) throws Exception {
        Properties p = new Properties();
        try (InputStream in = Clock.class.getResourceAsStream("/clock.properties")) {
            p.load(in);
        }
        Part part = new Part(args.length > 0 ? args[0] : "hour", 3600);
        System.out.println(p.getProperty("title") + " " + part);
    }
}
