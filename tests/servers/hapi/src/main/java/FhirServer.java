import ca.uhn.fhir.batch2.jobs.config.Batch2JobsConfig;
import ca.uhn.fhir.context.FhirContext;
import ca.uhn.fhir.context.support.IValidationSupport;
import ca.uhn.fhir.interceptor.api.Hook;
import ca.uhn.fhir.interceptor.api.IInterceptorService;
import ca.uhn.fhir.interceptor.api.Interceptor;
import ca.uhn.fhir.interceptor.api.Pointcut;
import ca.uhn.fhir.jpa.api.config.JpaStorageSettings;
import ca.uhn.fhir.jpa.api.config.ThreadPoolFactoryConfig;
import ca.uhn.fhir.jpa.api.dao.IFhirSystemDao;
import ca.uhn.fhir.jpa.batch2.JpaBatch2Config;
import ca.uhn.fhir.jpa.config.HapiJpaConfig;
import ca.uhn.fhir.jpa.config.r4.JpaR4Config;
import ca.uhn.fhir.jpa.config.r5.JpaR5Config;
import ca.uhn.fhir.jpa.config.util.HapiEntityManagerFactoryUtil;
import ca.uhn.fhir.jpa.model.config.PartitionSettings;
import ca.uhn.fhir.jpa.model.config.SubscriptionSettings;
import ca.uhn.fhir.jpa.model.dialect.HapiFhirH2Dialect;
import ca.uhn.fhir.jpa.provider.IJpaSystemProvider;
import ca.uhn.fhir.jpa.provider.JpaCapabilityStatementProvider;
import ca.uhn.fhir.jpa.search.DatabaseBackedPagingProvider;
import ca.uhn.fhir.jpa.subscription.channel.config.SubscriptionChannelConfig;
import ca.uhn.fhir.parser.StrictErrorHandler;
import ca.uhn.fhir.rest.server.RestfulServer;
import ca.uhn.fhir.rest.server.exceptions.AuthenticationException;
import ca.uhn.fhir.rest.server.provider.ResourceProviderFactory;
import ca.uhn.fhir.rest.server.util.ISearchParamRegistry;
import ca.uhn.fhir.util.FhirTerser;
import jakarta.persistence.EntityManagerFactory;
import jakarta.servlet.http.HttpServletRequest;
import java.io.File;
import java.util.Arrays;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import javax.sql.DataSource;
import org.apache.catalina.Context;
import org.apache.catalina.startup.Tomcat;
import org.h2.jdbcx.JdbcConnectionPool;
import org.hl7.fhir.instance.model.api.IBase;
import org.hl7.fhir.instance.model.api.IBaseConformance;
import org.springframework.beans.factory.config.ConfigurableListableBeanFactory;
import org.springframework.context.annotation.AnnotationConfigApplicationContext;
import org.springframework.context.annotation.Bean;
import org.springframework.context.annotation.Configuration;
import org.springframework.context.annotation.Import;
import org.springframework.orm.jpa.JpaTransactionManager;
import org.springframework.orm.jpa.LocalContainerEntityManagerFactoryBean;

/**
 * The FHIR server of the tests: HAPI FHIR JPA on H2 in one process, on 127.0.0.1 only.
 *
 * <p>-Dport (0: any free one, printed once it listens), -Dfhir.version=R4|R5, -Ddb=&lt;jdbc url&gt;, -Dauth.token,
 * -Dstrict=true, -Dwipe=true, -Dclient.ids=false, -Downer=&lt;pid&gt; (the server ends when that process does).
 */
@Configuration
@Import({HapiJpaConfig.class, ThreadPoolFactoryConfig.class, JpaBatch2Config.class, Batch2JobsConfig.class,
        SubscriptionChannelConfig.class})
public class FhirServer {

    @Bean JpaStorageSettings storageSettings() {
        JpaStorageSettings s = new JpaStorageSettings();
        s.setSchedulingDisabled(true);
        s.setEnableTaskPreExpandValueSets(false);
        s.setEnableTaskStaleSearchCleanup(false);
        s.setEnableTaskResourceReindexing(false);
        s.setEnableTaskBulkImportJobExecution(false);
        s.setEnableTaskBulkExportJobExecution(false);
        s.setStatusBasedReindexingDisabled(true);
        s.setMarkResourcesForReindexingUponSearchParameterChange(false);
        s.setHibernateSearchIndexFullText(false);
        s.setHibernateSearchIndexSearchParams(false);
        s.setAllowExternalReferences(true);
        s.setReuseCachedSearchResultsForMillis(null);
        s.setExpungeEnabled(true);
        s.setAllowMultipleDelete(Boolean.getBoolean("wipe"));
        if (!takesClientIds()) s.setResourceClientIdStrategy(JpaStorageSettings.ClientIdStrategyEnum.NOT_ALLOWED);
        return s;
    }

    @Bean PartitionSettings partitionSettings() { return new PartitionSettings(); }

    @Bean SubscriptionSettings subscriptionSettings() { return new SubscriptionSettings(); }

    @Bean DataSource dataSource() {
        JdbcConnectionPool p = JdbcConnectionPool.create(System.getProperty("db", "jdbc:h2:mem:fhir;DB_CLOSE_DELAY=-1"), "sa", "");
        p.setMaxConnections(20);
        return p;
    }

    @Bean LocalContainerEntityManagerFactoryBean entityManagerFactory(ConfigurableListableBeanFactory bf, DataSource ds,
            FhirContext fhir, JpaStorageSettings settings) {
        LocalContainerEntityManagerFactoryBean f = HapiEntityManagerFactoryUtil.newEntityManagerFactory(bf, fhir, settings);
        f.setPersistenceUnitName("fhir");
        f.setDataSource(ds);
        f.setJpaPropertyMap(Map.of(
                "hibernate.dialect", HapiFhirH2Dialect.class.getName(),
                "hibernate.hbm2ddl.auto", System.getProperty("db") == null ? "create-only" : "update",
                "hibernate.jdbc.batch_size", "30",
                "hibernate.search.enabled", "false"));
        return f;
    }

    @Bean JpaTransactionManager transactionManager(EntityManagerFactory emf) { return new JpaTransactionManager(emf); }

    @Interceptor
    public static class Token {
        private final String expected;
        public Token(String token) { expected = "Bearer " + token; }
        @Hook(Pointcut.SERVER_INCOMING_REQUEST_PRE_PROCESSED)
        public boolean check(HttpServletRequest request) {
            if (!"/metadata".equals(request.getPathInfo()) && !expected.equals(request.getHeader("Authorization")))
                throw new AuthenticationException("bearer token missing or wrong");
            return true;
        }
    }

    private static boolean takesClientIds() { return Boolean.parseBoolean(System.getProperty("client.ids", "true")); }

    /** Stock HAPI says nothing of updateCreate, whatever it does; a server that takes no ids of clients has to. */
    @Interceptor
    public static class NoUpdateCreate {
        private final FhirTerser terser;
        public NoUpdateCreate(FhirContext fhir) { terser = fhir.newTerser(); }
        @Hook(Pointcut.SERVER_CAPABILITY_STATEMENT_GENERATED)
        public void say(IBaseConformance statement) {
            for (IBase type : terser.getValues(statement, "CapabilityStatement.rest.resource"))
                terser.setElement(type, "updateCreate", "false");
        }
    }

    public static void main(String[] args) {
        try {
            if (Long.getLong("owner") != null) endWith(Long.getLong("owner"));
            serve();
        } catch (Throwable t) {
            // Spring's and Tomcat's threads would keep a server alive that never listens.
            t.printStackTrace();
            System.exit(1);
        }
    }

    /** A test run that is killed has no chance to stop its servers. */
    private static void endWith(long owner) {
        ProcessHandle.of(owner).map(ProcessHandle::onExit).orElseGet(() -> CompletableFuture.completedFuture(null))
                .thenRun(() -> System.exit(0));
    }

    private static void serve() throws Exception {
        long t0 = System.currentTimeMillis();
        boolean r5 = "R5".equals(System.getProperty("fhir.version", "R4"));
        AnnotationConfigApplicationContext ctx = new AnnotationConfigApplicationContext();
        ctx.register(FhirServer.class, r5 ? JpaR5Config.class : JpaR4Config.class);
        ctx.addBeanFactoryPostProcessor(bf -> Arrays.stream(bf.getBeanDefinitionNames())
                .forEach(n -> { if (bf.getBeanDefinition(n).isSingleton()) bf.getBeanDefinition(n).setLazyInit(true); }));
        ctx.refresh();
        log("spring", t0);
        FhirContext fhir = ctx.getBean(FhirContext.class);
        if (Boolean.getBoolean("strict")) fhir.setParserErrorHandler(new StrictErrorHandler());
        IFhirSystemDao<?, ?> dao = ctx.getBean(IFhirSystemDao.class);
        log("dao", t0);
        JpaStorageSettings settings = ctx.getBean(JpaStorageSettings.class);
        RestfulServer server = new RestfulServer(fhir);
        server.setInterceptorService(ctx.getBean(IInterceptorService.class));
        server.registerProviders(ctx.getBean(ResourceProviderFactory.class).createProviders());
        server.registerProvider(ctx.getBean(IJpaSystemProvider.class));
        log("providers", t0);
        server.setPagingProvider(ctx.getBean(DatabaseBackedPagingProvider.class));
        JpaCapabilityStatementProvider meta = new JpaCapabilityStatementProvider(server, dao, settings,
                ctx.getBean(ISearchParamRegistry.class), ctx.getBean(IValidationSupport.class));
        meta.setImplementationDescription("test server");
        server.setServerConformanceProvider(meta);
        if (System.getProperty("auth.token") != null) server.registerInterceptor(new Token(System.getProperty("auth.token")));
        if (!takesClientIds()) server.registerInterceptor(new NoUpdateCreate(fhir));
        Tomcat tomcat = new Tomcat();
        tomcat.setBaseDir(System.getProperty("java.io.tmpdir"));
        tomcat.setPort(Integer.getInteger("port", 8095));
        tomcat.getConnector().setProperty("address", "127.0.0.1");
        tomcat.getConnector().setProperty("maxPostSize", "-1");
        tomcat.getConnector().setThrowOnFailure(true);
        Context web = tomcat.addContext("", new File(".").getAbsolutePath());
        Tomcat.addServlet(web, "fhir", server).setLoadOnStartup(1);
        web.addServletMappingDecoded("/fhir/*", "fhir");
        tomcat.start();
        log("listening on port " + tomcat.getConnector().getLocalPort(), t0);
        tomcat.getServer().await();
    }

    private static void log(String what, long t0) { System.out.println(what + ", " + (System.currentTimeMillis() - t0) + " ms"); }
}
